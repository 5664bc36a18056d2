"""``metrics.jsonl``: a line a training step or measurement, readable while the run writes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import writing
from ..files import whole_file

Numbers = dict[str, Any]


class Journal:
    """The metrics of a run up to a step.

    Later lines, of a run that was killed after them, are dropped from the file.

    Args:
        file: appended to, a whole line at a time; None keeps them in memory alone, for processes
            that do not write.
    """

    def __init__(self, file: Path, step: int, *, writes: bool = True):
        self.file = file if writes else None
        self.lines = [line for line in read_lines(file) if line["step"] <= step]
        if self.file is not None and file.is_file():
            with whole_file(file) as stream:
                stream.write("".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add(self, numbers: Numbers) -> None:
        self.lines.append(numbers)
        if self.file is not None:
            with writing(self.file), self.file.open("a") as stream:
                stream.write(json.dumps(numbers) + "\n")
                stream.flush()
                os.fsync(stream.fileno())

    def measured(self, step: int) -> bool:
        """Whether a measurement of this step is there."""
        return any(line["step"] == step and _is_measurement(line) for line in self.lines)

    def merged(self) -> list[Numbers]:
        """What is known of each step, in order."""
        return merge(self.lines)


def read_lines(file: Path) -> list[Numbers]:
    """The lines of a journal, up to one that was torn by a kill; none where there is no file."""
    lines: list[Numbers] = []
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


def merge(lines: list[Numbers]) -> list[Numbers]:
    """The lines of a step as one."""
    steps: dict[int, Numbers] = {}
    for line in lines:
        steps.setdefault(line["step"], {}).update(line)
    return list(steps.values())


def _is_measurement(line: Mapping[str, Any]) -> bool:
    return any(key.startswith("eval/") for key in line)
