"""Two commands on one target at once: the end is that of one order, or one of them was refused.

scripts/two_at_once.py tries every pair at many moments; here are those that write the same file.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
script: Any = import_module("two_at_once")

PAIRS = [
    ("gallery", "score", "score by another"),
    ("gallery", "score", "sample"),
    ("gallery", "sample", "sample others"),
    ("run", "finetune", "finetune"),
    ("run", "finetune", "score"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "first", "second"), PAIRS, ids=[", ".join(pair) for pair in PAIRS]
)
def test_the_end_is_that_of_one_order(
    target: str, first: str, second: str, tiny_folder: Path, tmp_path: Path
) -> None:
    commands = {command.name: command for command in script.TARGETS[target]}
    trials, wrong = script.trial(
        target, commands[first], commands[second], tmp_path, str(tiny_folder), offsets=4
    )
    assert trials and not wrong, "\n".join(wrong)


def test_what_differs_is_named() -> None:
    """A file that one side lacks, and one whose content is another."""
    assert script.differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4"}) == ["b", "c"]
