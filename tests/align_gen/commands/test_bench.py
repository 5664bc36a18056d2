"""`align-gen bench`: subcommands, and mistakes; what is timed has its own tests."""

from typing import Any

import pytest

from align_gen.commands import bench
from tests.kits.command_line import Cli, mistake


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["bench", "speed"],
            "bench 'speed': have ['attention', 'rewards', 'scoring', 'sizes', 'steps']",
        ),
        (["bench", "sizes", "--model", "emoji-sd"], "--model 'emoji-sd': have ['Qwen/Qwen-Image'"),
        (["bench", "sizes"], "no CUDA device"),
        (["bench", "--model", "sdxl"], "--model 'sdxl': have ['emoji-flow', 'emoji-sd']"),
        (["bench", "attention", "--dtype", "int8"], "want one of fp32, bf16, fp16"),
        (["bench", "rewards", "--against", "trl"], "--against"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, arguments: list[str], named: str) -> None:
    assert named in mistake(cli(*arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, None, 7)),
        (["--model", "emoji-sd"], ("emoji-sd", None, 7)),
        (["--model", "emoji-sd", "--against", "trl"], ("emoji-sd", "trl", 7)),
        (["steps", "--rounds", "3", "--model", "emoji-flow"], ("emoji-flow", None, 3)),
        (["--rounds", "3", "steps"], (None, None, 3)),
        (["--json"], (None, None, 7)),
    ],
)
def test_steps_need_not_be_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: tuple[Any, ...]
) -> None:
    """Every line of the documentation, and options before the name."""
    asked: list[tuple[Any, ...]] = []

    def timed(*given: Any) -> list[Any]:
        asked.append(given)
        return []

    monkeypatch.setattr(bench, "_steps", timed)
    assert cli("bench", *arguments).code == 0
    assert asked == [expected]


def test_kernels_are_timed_in_the_precision_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU: one head, float32 unless another is named; by either spelling of its name."""
    import torch

    asked: list[Any] = []

    def timed(device: Any, dtype: Any, *, heads: int, repeats: int) -> list[dict[str, Any]]:
        asked.append((dtype, heads, repeats))
        row = {"model": "SD 1.5", "heads": heads, "kernel": "flash", "why_not": "it is for CUDA"}
        figures = {"forward_seconds": 0.001, "seconds": 0.0025, "ratio": 1.25, "error": 1e-6}
        return [row, {**row, "kernel": "sdpa", "why_not": None, **figures}]

    monkeypatch.setattr("align_gen.bench.attention.bench_attention", timed)
    done = cli("bench", "attention", "--rounds", 2, "--dtype", "bfloat16")
    assert cli("bench", "attention").code == 0
    assert asked == [(torch.bfloat16, 1, 2), (torch.float32, 1, 7)]
    heading, flash, sdpa = done.out.splitlines()
    assert heading.split() == [
        "model",
        "heads",
        "kernel",
        "forward",
        "and",
        "back",
        "to",
        "sdpa",
        "error",
    ]
    assert flash.endswith("flash       it is for CUDA")
    assert sdpa.split()[2:] == ["1", "sdpa", "1.0", "ms", "2.5", "ms", "1.25", "1.0e-06"]
