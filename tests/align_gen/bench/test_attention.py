"""The bench of attention kernels: which rows there are, and that what is timed is attention."""

import pytest
import torch

from align_gen.bench import attention
from align_gen.bench.attention import KERNEL_NAMES, Shape, bench_attention


def test_every_kernel_has_a_row_and_those_that_run_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHAPES", (Shape("small", 4, 16, 64, 48),))
    rows = list(bench_attention(torch.device("cpu"), torch.float32, heads=2, repeats=2))
    assert [row["kernel"] for row in rows] == list(KERNEL_NAMES)
    ran = {row["kernel"]: row for row in rows if row["why_not"] is None}
    assert {"sdpa", "math"} <= ran.keys()
    assert ran["sdpa"]["ratio"] == 1 and ran["sdpa"]["error"] == 0
    for row in ran.values():
        assert row["error"] < 1e-5 and row["seconds"] > 0 and row["heads"] == 2


def test_a_matrix_of_scores_too_large_for_memory_is_left_out() -> None:
    """Wan's 32760 tokens squared: 4.3 GB a head in float32."""
    wan = next(shape for shape in attention.SHAPES if shape.model == "Wan 2.1 14B")
    assert attention._why_not("math", wan, 1, torch.float32, torch.device("cpu")) is not None
    assert attention._why_not("sdpa", wan, 1, torch.float32, torch.device("cpu")) is None
