"""Reference files: they name bytes of files beside them, and nothing else."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from align_gen.errors import UserError
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.sources import open_source
from tests.kits.pictures import picture

PICTURE = picture()


def contents(folder: Path, refs: dict[str, Any], **more: Any) -> list[bytes]:
    (folder / "r.json").write_text(json.dumps({"version": 1, "refs": refs, **more}))
    return [item.read() for item in open_source(f"reference://g::{folder / 'r.json'}")]


def test_bytes_of_files_beside_it(tmp_path: Path) -> None:
    """Whole, a part, by its relative or its absolute name, and inline; of the first version too."""
    (tmp_path / "data.bin").write_bytes(b"??" + PICTURE + b"??")
    (tmp_path / "a.png").write_bytes(PICTURE)
    refs: dict[str, Any] = {
        "g/1.png": ["data.bin", 2, len(PICTURE)],
        "g/2.png": ["a.png"],
        "g/3.png": [str(tmp_path / "a.png")],
    }
    assert contents(tmp_path, refs) == [PICTURE] * 3
    (tmp_path / "r.json").write_text(json.dumps(refs))
    source = open_source(f"reference://g::{tmp_path / 'r.json'}")
    assert [item.read() for item in source] == [PICTURE] * 3


def test_a_reference_file_at_a_url() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/refs/a.png", PICTURE)
    memory.pipe("/refs/r.json", json.dumps({"g/a.png": ["a.png"]}).encode())
    (item,) = open_source("reference://g::memory://refs/r.json")
    assert item.read() == PICTURE


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../secret.png",
        "sub/../../secret.png",
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "zip://a.png::b.zip",
        "link.png",
        "",
    ],
)
def test_what_lies_elsewhere_is_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (folder / "link.png").symlink_to("../secret.png")
    with pytest.raises(UserError, match=r"r\.json: 'g/a\.png' refers to a file outside"):
        contents(folder, {"g/a.png": [target]})


@pytest.mark.parametrize(
    "more",
    [
        {"templates": {"u": "{{ ''.__class__ }}"}},
        {"templates": {"u": "x"}},
        {"gen": [{"key": "{{ i }}", "url": "x", "dimensions": {"i": {"stop": 10**12}}}]},
    ],
)
def test_templates_are_not_filled_in(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not filled in"):
        contents(tmp_path, {"g/a.png": ["{{u}}"]}, **more)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"version": 1, "refs": 3}',
        b'{"g/a.png": 3}',
        b'{"g/a.png": ["a.png", -1, 5]}',
        b'{"g/a.png": ["a.png", 0, 1e99]}',
    ],
)
def test_what_is_no_reference_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(UserError, match=r"r\.json: ") as caught:
        open_source(f"reference://g::{tmp_path / 'r.json'}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_costs_its_row(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match="no such file"):
        contents(tmp_path, {"g/a.png": ["gone.png"]})
