"""``metrics.jsonl``: a line a training step or measurement, readable while the run writes."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import writing
from ..files import append, whole_file

log = logging.getLogger("align_gen")
Numbers = dict[str, Any]
MOST = 2**53  # steps


class Journal:
    """The metrics of a run up to a step.

    Later lines, of a run that was killed after them, are dropped from the file.

    Args:
        file: appended to, a whole line at a time; None keeps them in memory alone, for processes
            that do not write.
        kept: the lines that a checkpoint of that step holds; the file is made of them again where
            it has lost any.
    """

    def __init__(
        self,
        file: Path,
        step: int,
        *,
        writes: bool = True,
        kept: list[Numbers] | None = None,
    ):
        self.file = file if writes else None
        there = [line for line in read_lines(file) if line["step"] <= step]
        # As text: a metric may be NaN, which equals nothing.
        is_whole = kept is None or as_lines(there[: len(kept)]) == as_lines(kept)
        self.lines = there if is_whole else list(kept or ())
        if not is_whole and writes:
            log.warning("%s: has lost lines; made again from the last checkpoint", file)
        if self.file is not None and (file.is_file() or self.lines):
            with whole_file(file) as stream:
                stream.write(as_lines(self.lines))

    def add(self, numbers: Numbers) -> None:
        self.lines.append(numbers)
        if self.file is not None:
            with writing(self.file):
                append(self.file, as_lines([numbers]))

    def measured(self, step: int) -> bool:
        """Whether a measurement of this step is there."""
        return step in self.measured_steps()

    def measured_steps(self) -> list[int]:
        """The steps that have a measurement."""
        return [line["step"] for line in self.lines if _is_measurement(line)]

    def merged(self) -> list[Numbers]:
        """One entry a step, in order, with all that its lines say."""
        return merge(self.lines)


def as_lines(lines: Iterable[Numbers]) -> bytes:
    """Lines as the file has them."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_lines(file: Path) -> list[Numbers]:
    """The lines of a journal, up to one that was torn by a kill; none where there is no file."""
    return parse_lines(file.read_bytes()) if file.is_file() else []


def parse_lines(content: bytes) -> list[Numbers]:
    """The lines, up to the first that is no object of numbers with a step."""
    lines: list[Numbers] = []
    for text in content.split(b"\n"):
        try:
            line = json.loads(text)
            _require_numbers(line)
        # Bytes that are no text, words, nesting without end, numbers of hundreds of digits.
        except (ValueError, RecursionError, OverflowError):
            break
        lines.append(line)
    return lines


def merge(lines: list[Numbers]) -> list[Numbers]:
    """The lines of a step as one."""
    steps: dict[int, Numbers] = {}
    for line in lines:
        steps.setdefault(line["step"], {}).update(line)
    return list(steps.values())


def _require_numbers(line: Any) -> None:
    """Raise ValueError, or OverflowError, for what no run has written."""
    if not isinstance(line, dict):
        raise ValueError("no object")
    step = line.get("step")
    if type(step) is not int or not 0 <= step < MOST:
        raise ValueError("no step")
    for value in line.values():
        if type(value) not in (int, float):
            raise ValueError("no number")
        float(value)


def _is_measurement(line: Mapping[str, Any]) -> bool:
    return any(key.startswith("eval/") for key in line)
