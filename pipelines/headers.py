"""Headers of safetensors files: names and shapes of tensors, none of which is read."""

import json
import struct
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")  # of the header, at the start of a file
MOST = 100_000_000  # bytes of a header, as safetensors itself has it
ABOUT = "__metadata__"


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin.

    Raises:
        ValueError: it is no such file; names the file.
    """
    with file.open("rb") as stream:
        start = stream.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else MOST + 1
        content = stream.read(length) if length <= MOST else b""
    try:
        header = json.loads(content) if len(content) == length else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not all(isinstance(row, dict) for row in header.values()):
        raise ValueError(f"{file}: no safetensors file (its header cannot be read)")
    return header, LENGTH.size + length


def tensor_shapes(header: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes by name; empty for a tensor whose row says none."""
    rows = {name: row for name, row in header.items() if name != ABOUT}
    return {name: _shape(row.get("shape")) for name, row in rows.items()}


def _shape(value: Any) -> list[int]:
    is_shape = isinstance(value, list) and all(type(size) is int for size in value)
    return value if is_shape else []
