"""Tables of scores: Parquet that gives back what it was given, or refuses."""

import json
import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.galleries.scoring import score
from align_gen.galleries.table import ScoresTable, save_parts

PROVENANCE = {"weights_sha256": "ab", "preprocessing": "x-1", "dtype": "float32", "options": {}}


def mean_level(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean pixel, in 255ths."""
    return (media.mean((1, 2, 3)) * 255).round()


def levels(folder: Path, *values: int) -> Gallery:
    """A gallery of pictures filled with the values."""
    media = (torch.tensor(values) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return write_gallery(
        folder, media, [{"prompt": str(v), "seed": n} for n, v in enumerate(values)]
    )


HOSTILE_ROWS: list[dict[str, Any]] = [
    {
        "file_name": "a.png",
        "seed": 2**63 - 1,
        "f": 0.1,
        "mixed": 1,
        "big": 2**70,
        "flag": True,
        "none": None,
        "": "",
    },
    {
        "file_name": "b.png",
        "seed": -(2**63),
        "f": 5e-324,
        "mixed": 1.0,
        "big": 1,
        "flag": False,
        "late": "猫\0\u2028",
    },
    {"file_name": "c.png", "f": -0.0, "mixed": "1", "nested": {"a": [1, None, 0.1]}, "late": ""},
    {},
    {
        "f": float("inf"),
        "mixed": None,
        "a.b": float("nan"),
        "seed": 2**53 + 1,
        "flags": True,
        "none": 0,
    },
]


def exact(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """repr tells 1 from 1.0 from True, 0.0 from -0.0, and gives a float to its last bit."""
    return [{key: repr(value) for key, value in row.items()} for row in rows]


def test_parquet_gives_back_every_row_and_number(tmp_path: Path) -> None:
    heads: dict[str, list[float | None]] = {
        "clip": [1 / 3, None, -0.0, 1e-310, float(torch.tensor(0.1))]
    }
    errors = [None, "truncated", None, None, None]
    table = ScoresTable(HOSTILE_ROWS, heads, errors, {"clip": PROVENANCE}, {"torch": "2"}, "/g")
    table.save(tmp_path / "s.parquet")
    found = ScoresTable.load(tmp_path / "s.parquet")
    assert exact(found.rows) == exact(HOSTILE_ROWS)
    assert list(map(repr, found.heads["clip"])) == list(map(repr, heads["clip"]))
    assert (found.errors, found.provenance, found.versions, found.folder) == (
        errors, {"clip": PROVENANCE}, {"torch": "2"}, "/g")  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


def test_columns_of_one_type_are_natural_to_other_readers(tmp_path: Path) -> None:
    rows = [
        {"seed": 1, "f": 0.5, "flag": True, "prompt": "a", "mixed": 1},
        {"seed": 2, "mixed": "x"},
    ]
    ScoresTable(rows, {"clip": [1.0, None]}, [None, "gone"], {}, {}).save(tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    types = {
        "seed": pa.int64(),
        "f": pa.float64(),
        "flag": pa.bool_(),
        "prompt": pa.string(),
        "mixed": pa.string(),
    }
    assert {field.name: field.type for field in table.schema} == types | {
        "clip": pa.float64(),
        "error": pa.string(),
    }
    assert table["seed"].to_pylist() == [1, 2]
    assert table["clip"].to_pylist() == [1.0, None]


def test_no_metadata_at_all_survives(tmp_path: Path) -> None:
    ScoresTable([{}, {}], {}, [None, None], {}, {}).save(tmp_path / "s.parquet")
    assert ScoresTable.load(tmp_path / "s.parquet").rows == [{}, {}]


def test_a_scored_gallery_survives_the_file(tmp_path: Path) -> None:
    table = score(levels(tmp_path / "g", 3, 5), {"level": {"name": mean_level}, "jpeg_size": 1.0})
    table.save(tmp_path / "s.parquet")
    assert ScoresTable.load(tmp_path / "s.parquet") == table
    assert table.provenance["jpeg_size"]["options"]["quality"] == 95
    assert table.versions["torch"] == version("torch")
    assert table.folder == str(tmp_path / "g")


@pytest.mark.parametrize(
    ("scores_at", "gallery_at"), [("g/scores.parquet", "g"), ("s.parquet", "deep/g")]
)
def test_scores_find_their_gallery_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores_at: str, gallery_at: str
) -> None:
    """Called by relative paths, then the whole run is moved and read from another working
    directory.
    """
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    score(levels(Path("run") / gallery_at, 3), {"level": {"name": mean_level}}).save(
        Path("run") / scores_at
    )
    os.rename("run", "moved")
    monkeypatch.chdir("/")
    folder = ScoresTable.load(tmp_path / "moved" / scores_at).folder
    assert folder is not None and Path(folder) == tmp_path / "moved" / gallery_at
    assert len(Gallery.load(folder)) == 1


def test_a_gallery_elsewhere_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the scores are moved: they still name the gallery, whatever the working directory is."""
    monkeypatch.chdir(tmp_path)
    levels(Path("g"), 3)
    (tmp_path / "scores").mkdir()
    score("g", {"level": {"name": mean_level}}).save("scores/s.parquet")
    os.rename("scores/s.parquet", "s.parquet")
    assert ScoresTable.load("s.parquet").folder == str(tmp_path / "g")


def test_parts_of_a_gallery_become_one_file(tmp_path: Path) -> None:
    """A column that is a number in one part and text in the other, or is missing in one, comes back
    as it was.
    """
    first = ScoresTable(
        [{"a": 1, "b": 2}], {"clip": [0.5]}, [None], {}, {}, "/g", {"combined": [0.5]}
    )
    second = ScoresTable(
        [{"a": "x", "c": 0.1}],
        {"clip": [None]},
        ["gone"],
        {},
        {},
        "/g",
        {"combined": [None], "uncertainty": [0.25]},
    )
    save_parts(lambda: iter([first, second]), tmp_path / "s.parquet")
    found = ScoresTable.load(tmp_path / "s.parquet")
    assert exact(found.rows) == exact([*first.rows, *second.rows])
    assert found == ScoresTable.join([first, second]) and found.uncertainty == [None, 0.25]


def test_a_table_of_the_first_kind_is_read(tmp_path: Path) -> None:
    """Before there were columns of its own, and a combination."""
    path = tmp_path / "s.parquet"
    ScoresTable([{"a": 1}], {"clip": [0.5]}, [None], {}, {}, "/g").save(path)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"align_gen"])
    del about["own"], about["combination"]
    pq.write_table(table.replace_schema_metadata({b"align_gen": json.dumps(about)}), path)
    found = ScoresTable.load(path)
    assert found.heads == {"clip": [0.5]} and found.combined is None and found.uncertainty is None


def test_names_that_would_clash_are_refused() -> None:
    with pytest.raises(UserError, match="reward 'clip'"):
        ScoresTable([{"clip": 1}], {"clip": [1.0]}, [None], {}, {})
    for name in ("error", "combined", "uncertainty", "sha256"):
        with pytest.raises(UserError, match=f"column '{name}'"):
            ScoresTable([{name: 1}], {}, [None], {}, {})
        with pytest.raises(UserError, match=f"reward '{name}'"):
            ScoresTable([{}], {name: [1.0]}, [None], {}, {})
    with pytest.raises(ValueError, match="'clip' has 2 entries for 1 rows"):
        ScoresTable([{}], {"clip": [1.0, 2.0]}, [None], {}, {})


def test_a_file_that_is_not_ours_is_refused_by_name(tmp_path: Path) -> None:
    ours = tmp_path / "ours.parquet"
    ScoresTable([{"seed": 1}], {"clip": [1.0]}, [None], {"clip": PROVENANCE}, {}).save(ours)
    pq.write_table(pa.table({"seed": [1]}), tmp_path / "plain.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "cut.parquet").write_bytes(ours.read_bytes()[:-20])
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "folder.parquet" / "inside.parquet").write_bytes(ours.read_bytes())
    table = pq.read_table(ours)
    for name, about in {
        "json": b"{",
        "list": b"[]",
        "keys": b'{"format": 1}',
        "number": b"1",
    }.items():
        pq.write_table(
            table.replace_schema_metadata({b"align_gen": about}), tmp_path / f"{name}.parquet"
        )
    pq.write_table(table.drop_columns(["clip"]), tmp_path / "column.parquet")

    refused = sorted(set(tmp_path.iterdir()) - {ours})
    assert len(refused) == 9
    for path in refused:
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}: not a scores file"):
            ScoresTable.load(path)
    with pytest.raises(UserError, match="no such file"):
        ScoresTable.load(tmp_path / "missing.parquet")


def test_a_later_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(
        pa.table({"a": [1]}).replace_schema_metadata({b"align_gen": b'{"format": 2}'}), path
    )
    with pytest.raises(UserError, match="format 2; this version reads 1"):
        ScoresTable.load(path)


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.parquet"
    old = ScoresTable([{"seed": 1}], {"clip": [1.0]}, [None], {}, {})
    old.save(path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            ScoresTable([{"seed": 2}], {"clip": [2.0]}, [None], {}, {}).save(path)
    assert ScoresTable.load(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


# --- what a table says of itself ------------------------------------------------------------------


def scored(*values: float | None, **provenance: str) -> ScoresTable:
    rows = [{"file_name": f"{n}.png"} for n in range(len(values))]
    errors = [None if value is not None else "gone" for value in values]
    return ScoresTable(rows, {"h": list(values)}, errors, {"h": dict(provenance)}, {})


def test_mean_and_deviation_are_over_the_pictures_that_could_be_read() -> None:
    """1, 3, 8: mean 4, squared distances 9 + 1 + 16 over 2, so a deviation of the root of 13."""
    table = scored(1.0, None, 3.0, 8.0)
    assert table.known("h") == [1.0, 3.0, 8.0]
    assert table.mean("h") == 4.0
    assert table.std("h") == pytest.approx(13**0.5, rel=1e-15)
    assert (scored(None).mean("h"), scored(5.0, None).std("h")) == (0.0, 0.0)


def test_a_mean_is_the_plain_sum_over_the_count() -> None:
    """The sum of ten .1 is below 1 in floating point; an exact sum is not, and would move runs."""
    assert scored(*[0.1] * 10).mean("h") == sum([0.1] * 10) / 10 != 0.1


def test_a_copy_at_another_folder_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    table = scored(1.0)
    assert table.at(tmp_path).folder == str(tmp_path)
    assert table.folder is None
    assert table.at(tmp_path).heads == table.heads


def test_scores_of_another_provenance_are_refused() -> None:
    table = scored(1.0, dtype="float32")
    table.require_same_rewards(scored(2.0, dtype="float32"), "h")
    with pytest.raises(UserError, match="column 'h': dtype differs, 'float32' in A and 'float16'"):
        table.require_same_rewards(scored(2.0, dtype="float16"), "h")
    with pytest.raises(UserError, match="column 'h': options differs, None in A"):
        table.require_same_rewards(scored(2.0, dtype="float32", options="x"), "h")


def test_scores_go_to_parquet_by_that_name_or_without_a_suffix(tmp_path: Path) -> None:
    for name in ("scores.parquet", "scores"):
        scored(1.0).save(tmp_path / name)
        assert ScoresTable.load(tmp_path / name).heads == {"h": [1.0]}
    with pytest.raises(UserError, match=r"scores\.csv: scores are Parquet; want .*\.parquet"):
        scored(1.0).save(tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_a_table_prints_as_one_short_line() -> None:
    """The mean of 1 and 2 is 1.5; what could not be read does not count."""
    rows = [{"file_name": f"{i}.png"} for i in range(3)]
    table = ScoresTable(rows, {"a": [1.0, 2.0, None]}, [None, None, "cut"], {}, {}, folder="g")
    assert repr(table) == "ScoresTable('g', 3 rows; a 1.5000)"
