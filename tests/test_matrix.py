"""The page of methods on families is of today's methods and families, and says what a cell
finds.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from align_gen.methods import METHODS
from align_gen.pipelines import LoraOptions
from tests.tiny import PIPELINES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
matrix: Any = import_module("write_matrix")


def test_the_page_has_every_method_and_family() -> None:
    """And every cell of it says yes: what does not fit would say why."""
    columns = [f"{method}, {name}" for method in METHODS for name in matrix.TRAINED]
    expected = matrix.page({family: dict.fromkeys(columns, "yes") for family in PIPELINES})
    assert (ROOT / "docs" / "matrix.md").read_text() == expected


@pytest.mark.slow
def test_a_cell_runs_and_a_cell_that_fails_says_why() -> None:
    assert matrix.cell("sd", "prdp", LoraOptions(rank=2)) == "yes"
    assert "modules {'nothing'} not found" in matrix.cell(
        "sd", "prdp", LoraOptions(2, target_modules=("nothing",))
    )
