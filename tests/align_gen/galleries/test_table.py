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
    gallery = str(tmp_path / "g")
    table = ScoresTable(HOSTILE_ROWS, heads, errors, {"clip": PROVENANCE}, {"torch": "2"}, gallery)
    table.save(tmp_path / "s.parquet")
    found = ScoresTable.load(tmp_path / "s.parquet")
    assert exact(found.rows) == exact(HOSTILE_ROWS)
    assert list(map(repr, found.heads["clip"])) == list(map(repr, heads["clip"]))
    assert (found.errors, found.provenance, found.versions, found.folder) == (
        errors, {"clip": PROVENANCE}, {"torch": "2"}, gallery)  # fmt: skip
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


def test_a_gallery_elsewhere_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared holds no path of this machine."""
    monkeypatch.chdir(tmp_path)
    levels(Path("g"), 3)
    (tmp_path / "scores").mkdir()
    score("g", {"level": {"name": mean_level}}).save("scores/s.parquet")
    assert ScoresTable.load("scores/s.parquet").folder is None
    assert str(tmp_path).encode() not in Path("scores/s.parquet").read_bytes()


def rewritten(path: Path, **about: Any) -> None:
    """A file of scores that says something else of itself."""
    table = pq.read_table(path)
    says = json.loads(table.schema.metadata[b"align_gen"]) | about
    pq.write_table(table.replace_schema_metadata({b"align_gen": json.dumps(says)}), path)


def test_only_a_gallery_below_the_file_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file from somebody else names a folder of the user's, by its path, climbing, or a link."""
    (tmp_path / "private").mkdir()
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent/link").symlink_to(tmp_path / "private")
    path = tmp_path / "sent/s.parquet"
    for folder in (str(tmp_path / "private"), "../private", "g/../../private", "link", "/"):
        ScoresTable([{"a": 1}], {"clip": [0.5]}, [None], {}, {}).save(path)
        rewritten(path, folder=folder)
        caplog.clear()
        assert ScoresTable.load(path).folder is None
        assert "sent/s.parquet: names a gallery outside of its own folder" in caplog.text
    for folder in (".", "g", "g/../h", str(tmp_path / "sent/g")):
        rewritten(path, folder=folder)
        found = ScoresTable.load(path).folder
        assert found is not None and Path(found).resolve().is_relative_to(tmp_path / "sent")


@pytest.mark.parametrize(
    "about",
    [
        {"provenance": [1]},
        {"provenance": {"clip": [1]}},
        {"versions": "x"},
        {"folder": 3},
        {"folder": "a\0b"},
        {"types": ["a"]},
        {"heads": {"clip": 1}},
        {"heads": ["a"], "types": {}},
        {"own": ["clip"]},
        {"own": {"combined": 1}},
        {"combination": "sum"},
        {"kept": {"clip": "2.0"}},
        {"unsigned": "clip"},
        {"format": [1]},
    ],
    ids=str,
)
def test_a_description_of_another_kind_is_refused(tmp_path: Path, about: dict[str, Any]) -> None:
    path = tmp_path / "s.parquet"
    ScoresTable([{"a": "x"}], {"clip": [0.5]}, [None], {"clip": {}}, {}).save(path)
    rewritten(path, **about)
    with pytest.raises(UserError, match=re.escape(str(path))):
        ScoresTable.load(path)


def test_a_description_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    deep = "[" * 100_000 + "]" * 100_000
    ScoresTable([{"a": [1]}], {"clip": [0.5]}, [None], {}, {}).save(path)
    table = pq.read_table(path)
    about = table.schema.metadata[b"align_gen"]
    cut = about.replace(b'"provenance": {}', b'"provenance": {"clip": ' + deep.encode() + b"}")
    assert cut != about
    pq.write_table(table.replace_schema_metadata({b"align_gen": cut}), path)
    with pytest.raises(UserError, match="not a scores file"):
        ScoresTable.load(path)
    # And in a cell.
    column = table.set_column(0, "a", pa.array([deep]))
    pq.write_table(column.replace_schema_metadata({b"align_gen": about}), path)
    with pytest.raises(UserError, match="not a scores file"):
        ScoresTable.load(path)


@pytest.mark.slow
def test_a_flipped_bit_never_changes_a_number(tmp_path: Path) -> None:
    """Each bit in turn: the file is refused, or gives what was written.

    Without checksums of pages, numbers come out changed.
    """
    path = tmp_path / "s.parquet"
    rows = [{"file_name": f"{n}.png", "prompt": f"a thing {n % 3}"} for n in range(8)]
    scores: list[float | None] = [n / 7 for n in range(8)]
    table = ScoresTable(rows, {"clip": scores}, [None] * 8, {"clip": PROVENANCE}, {})
    table.save(path)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    refused = 0
    for at in range(0, 8 * (len(whole) - footer), 7):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            assert ScoresTable.load(path) == table
        except UserError:
            refused += 1
    assert refused > 100


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    table = ScoresTable([{"a": 1}], {"clip": [0.5]}, [None], {}, {})
    table.save(path)
    pq.write_table(pq.read_table(path), path)
    assert ScoresTable.load(path) == table


def test_only_scores_of_ours_are_replaced(tmp_path: Path) -> None:
    table = ScoresTable([{"a": 1}], {"clip": [0.5]}, [None], {}, {})
    others = {
        "plain.parquet": lambda path: pq.write_table(pa.table({"a": [1]}), path),
        "text.parquet": lambda path: path.write_text("mine"),
        "pairs.parquet": lambda path: pq.write_table(
            pa.table({"a": [1]}).replace_schema_metadata(
                {b"align_gen": b'{"format": 1, "kind": "pairs"}'}
            ),
            path,
        ),
        "deep.parquet": lambda path: pq.write_table(
            pa.table({"a": [1]}).replace_schema_metadata({b"align_gen": b"[" * 100_000}), path
        ),
        "noname": lambda path: path.write_text("mine"),
    }
    for name, make in others.items():
        make(tmp_path / name)
        kept = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name}: is there, and no file of scores"):
            table.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == kept
    (tmp_path / "link.parquet").symlink_to(tmp_path / "text.parquet")
    with pytest.raises(UserError, match="is a link"):
        table.save(tmp_path / "link.parquet")
    with pytest.raises(UserError, match="is a device"):
        table.save("/dev/null")


def test_what_this_user_wrote_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number, prompt, reason, head or secret, and the signature is nobody's."""
    monkeypatch.setenv("ALIGN_GEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "s.parquet"
    extra = {"sha256": ["ab", "cd"]}
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    heads: dict[str, list[float | None]] = {"clip": [0.5, None]}
    table = ScoresTable(rows, heads, [None, "gone"], {"clip": PROVENANCE}, {}, None, extra)
    table.save(path)
    assert ScoresTable.load_signed(path) == (table, True)
    # As two parts the file is the same.
    halves = [
        ScoresTable([row], {"clip": [heads["clip"][n]]}, [table.errors[n]], table.provenance, {},
                    None, {"sha256": [extra["sha256"][n]]})
        for n, row in enumerate(rows)
    ]  # fmt: skip
    save_parts(lambda: iter(halves), path)
    assert ScoresTable.load_signed(path) == (table, True)

    written = pq.read_table(path)
    metadata = written.schema.metadata
    for name, values in {
        "clip": pa.array([0.25, None]),
        "prompt": pa.array(["a", "c"]),
        "error": pa.array([None, None], pa.string()),
        "sha256": pa.array(["ab", "ab"]),
    }.items():
        place = written.schema.get_field_index(name)
        forged = written.set_column(place, name, values).replace_schema_metadata(metadata)
        pq.write_table(forged, path)
        assert not ScoresTable.load_signed(path)[1], name
    other = metadata[b"align_gen"].replace(b"x-1", b"x-2")
    pq.write_table(written.replace_schema_metadata({**metadata, b"align_gen": other}), path)
    assert not ScoresTable.load_signed(path)[1]
    pq.write_table(written.replace_schema_metadata(metadata), path)
    assert ScoresTable.load_signed(path)[1]
    monkeypatch.setenv("ALIGN_GEN_CACHE", str(tmp_path / "another"))
    assert not ScoresTable.load_signed(path)[1]


def test_parts_of_a_gallery_become_one_file(tmp_path: Path) -> None:
    """A column that is a number in one part and text in the other, or is missing in one, comes back
    as it was.
    """
    gallery = str(tmp_path / "g")
    first = ScoresTable(
        [{"a": 1, "b": 2}], {"clip": [0.5]}, [None], {}, {}, gallery, {"combined": [0.5]}
    )
    second = ScoresTable(
        [{"a": "x", "c": 0.1}],
        {"clip": [None]},
        ["gone"],
        {},
        {},
        gallery,
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
