"""The folder of chunks: links are refused, what is not ours stays, and all rows are there."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from align_gen.errors import RunFailure, UserError
from align_gen.galleries import scoring
from align_gen.galleries.chunks import begin, finished, folder_of, held
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.scoring import score_file
from align_gen.galleries.table import ScoresTable
from align_gen.locks import beside, locked


def gallery(tmp_path: Path, count: int = 3) -> Path:
    write_gallery(tmp_path / "g", torch.rand(count, 3, 4, 4), [{"prompt": "a"}] * count)
    return tmp_path / "g"


def chunk(path: Path, count: int = 1) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = [{"file_name": f"{n}.png"} for n in range(count)]
    ScoresTable(rows, {"h": [1.0] * count}, [None] * count, {}, {}).save(path)
    return path


def test_a_linked_folder_of_chunks_is_refused(tmp_path: Path) -> None:
    """Files outside keep their names, and none is added."""
    folder = gallery(tmp_path)
    chunk(tmp_path / "data/2020-sales.parquet")
    (folder / ".scores.parquet.parts").symlink_to(tmp_path / "data")
    kept = (tmp_path / "data/2020-sales.parquet").read_bytes()
    with pytest.raises(UserError, match=r"\.scores\.parquet\.parts: is a link"):
        score_file(folder, ["jpeg_size"], folder / "scores.parquet")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["2020-sales.parquet"]
    assert (tmp_path / "data/2020-sales.parquet").read_bytes() == kept
    assert not (folder / "scores.parquet").exists()


def test_what_is_no_chunk_stays_in_the_folder(tmp_path: Path) -> None:
    folder = gallery(tmp_path)
    parts = folder_of(folder / "scores.parquet")
    chunk(parts / "000000.parquet")
    chunk(parts / "known-1-000000.parquet")
    (parts / ".000000.parquet.0123456789abcdef.part").touch()
    for name in ("2020-sales.parquet", "00000.parquet", "known-000000.parquet", "notes"):
        (parts / name).write_text("mine")
    (parts / "link.parquet").symlink_to(tmp_path)
    assert score_file(folder, ["jpeg_size"], folder / "scores.parquet") is not None
    left = ["00000.parquet", "2020-sales.parquet", "known-000000.parquet", "link.parquet", "notes"]
    assert sorted(path.name for path in parts.iterdir()) == left
    assert all((parts / name).read_text() == "mine" for name in left if name != "link.parquet")


@pytest.mark.parametrize("name", ["000000.parquet", "known-1-000003.parquet"])
@pytest.mark.parametrize("kind", ["text", "link", "folder"])
def test_a_chunk_of_somebody_elses_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    folder = gallery(tmp_path)
    path = folder_of(folder / "scores.parquet") / name
    path.parent.mkdir()
    if kind == "text":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(chunk(tmp_path / "data/x.parquet"))
    else:
        path.mkdir()
    with pytest.raises(UserError, match=f"{name}: is no chunk of scores by align-gen"):
        score_file(folder, ["jpeg_size"], folder / "scores.parquet")
    assert path.is_symlink() == (kind == "link") and path.is_dir() == (kind == "folder")


def test_chunks_of_two_killed_calls_are_both_known(tmp_path: Path) -> None:
    """Whatever else is in the folder, none takes another's name."""
    parts = tmp_path / "parts"
    for count in (1, 2, 3):
        chunk(parts / "000000.parquet", count)
        begin(tmp_path / "s.parquet", parts)
        (parts / f"note-{count}").touch()
        (parts / f"note-{count - 1}").unlink(missing_ok=True)
    rows = [len(ScoresTable.load(path).rows) for path in sorted(parts.glob("known-*.parquet"))]
    assert rows == [1, 2, 3]


def test_a_file_has_a_row_of_every_picture(tmp_path: Path) -> None:
    out, parts = tmp_path / "s.parquet", tmp_path / "parts"
    chunk(parts / "000000.parquet", 2)
    chunk(parts / "000001.parquet", 1)
    assert len(finished(out, parts, {0: 2, 1: 1}, 3)) == 2
    assert len(finished(out, parts, {1: 1, 0: 2}, None)) == 2
    for saved, total in (({0: 2, 1: 1}, 4), ({0: 2}, 2), ({0: 2, 1: 1, 2: 1}, 4), ({}, 0)):
        with pytest.raises(RunFailure, match=r"s\.parquet: chunks of"):
            finished(out, parts, saved, total)


def test_chunks_that_vanish_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program empties the folder meanwhile: no file of half the pictures is written."""
    folder = gallery(tmp_path, 5)
    monkeypatch.setattr("align_gen.galleries.workers.CHUNK", 2)

    def emptied(*arguments: Any) -> Any:
        (folder_of(folder / "scores.parquet") / "000001.parquet").unlink()
        return finished(*arguments)

    monkeypatch.setattr(scoring, "finished", emptied)
    with pytest.raises(RunFailure, match="chunks of 5 pictures were saved and 2 of 3 files"):
        score_file(folder, ["jpeg_size"], folder / "scores.parquet")
    assert not (folder / "scores.parquet").exists()


def test_a_scores_file_has_one_writer(tmp_path: Path) -> None:
    """The second is told the first; and whoever replaces the gallery would be, too."""
    folder = gallery(tmp_path)
    told = rf"is being written by process {os.getpid()} on"
    elsewhere = tmp_path / "s.parquet"
    with held(folder / "scores.parquet", folder):
        with pytest.raises(UserError, match=f"g: {told}"):
            score_file(folder, ["jpeg_size"], folder / "scores.parquet")
        with pytest.raises(UserError, match=told), locked(beside(folder), folder):
            pass
        assert score_file(folder, ["jpeg_size"], elsewhere) is not None
    with held(elsewhere, folder):
        with pytest.raises(UserError, match=rf"s\.parquet: {told}"):
            score_file(folder, ["jpeg_size"], elsewhere)
        with locked(beside(folder), folder):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "s.parquet"]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
