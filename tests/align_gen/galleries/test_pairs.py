"""Pairs from scores, by hand and by law; Parquet that keeps them, for us and for the datasets
library.
"""

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from align_gen.errors import UserError
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.galleries.mining import BY, pairs
from align_gen.galleries.pairs import MediaFile, Pairs, read_pairs, write_pairs
from align_gen.galleries.table import ScoresTable
from align_gen.losses import choice_probabilities


def table(heads: dict[str, list[float | None]], prompts: str) -> ScoresTable:
    """One picture a letter of ``prompts``, which is its prompt; picture n is "n.png"."""
    rows = [{"file_name": f"{n}.png", "prompt": prompt} for n, prompt in enumerate(prompts)]
    return ScoresTable(rows, heads, [None] * len(rows), {}, {})


def chosen(found: Pairs) -> list[tuple[str, str, float]]:
    return [(row["chosen"][0], row["rejected"][0], round(row["margin"], 6)) for row in found]


ONE = table({"clip": [0.1, 0.4, 0.2, 0.2, 5.0]}, "aaaab")


# --- which pairs ----------------------------------------------------------------------------------


def test_all_pairs_of_a_prompt_the_widest_first() -> None:
    """.1 .4 .2 .2 make six pairs, of which 2 and 3 tie; b has one picture, hence none."""
    found = pairs(ONE, column="clip")
    expected = [("1", "0", 0.3), ("1", "2", 0.2), ("1", "3", 0.2), ("2", "0", 0.1), ("3", "0", 0.1)]
    assert chosen(found) == expected
    assert found.ties == 1 and found.unreadable == 0
    assert {row["prompt"] for row in found} == {"a"}


def test_fewer_by_width_and_by_number() -> None:
    """.15 leaves three pairs and the tie and two narrow ones out; two of a prompt are the two
    widest.
    """
    found = pairs(ONE, column="clip", min_margin=0.15)
    assert chosen(found) == [("1", "0", 0.3), ("1", "2", 0.2), ("1", "3", 0.2)] and found.ties == 3
    assert chosen(pairs(ONE, column="clip", per_prompt=2)) == [("1", "0", 0.3), ("1", "2", 0.2)]


def test_the_best_with_the_worst() -> None:
    """1 > 2 = 3 > 0: one pair; two would be (1, 0) and the tie of 2 and 3, which is none."""
    assert chosen(pairs(ONE, column="clip", by="best_worst")) == [("1", "0", 0.3)]
    both = pairs(ONE, column="clip", by="best_worst", per_prompt=2)
    assert chosen(both) == [("1", "0", 0.3)] and both.ties == 1
    odd = table({"clip": [3.0, 1.0, 2.0, 5.0, 4.0]}, "aaaaa")
    assert chosen(pairs(odd, column="clip", by="best_worst", per_prompt=9)) == [
        ("3", "1", 4.0),
        ("4", "2", 2.0),
    ]


def test_a_picture_without_a_score_is_in_no_pair() -> None:
    found = pairs(table({"clip": [1.0, None, math.nan, 2.0]}, "aaaa"), column="clip")
    assert chosen(found) == [("3", "0", 1.0)] and found.unreadable == 2


def test_every_margin_is_above_zero() -> None:
    g = torch.Generator().manual_seed(0)
    values: list[float | None] = (torch.randint(0, 9, (40,), generator=g) / 4).tolist()
    scores = table({"clip": values}, "abcd" * 10)
    for by in BY:
        found = pairs(scores, by=by, column="clip", per_prompt=7)
        assert len(found) > 10 and all(row["margin"] > 0 for row in found)
        assert len({(row["chosen"], row["rejected"]) for row in found}) == len(found)


# --- several heads --------------------------------------------------------------------------------


def test_heads_are_averaged_in_their_own_deviations() -> None:
    """(0, 2): deviation 1, margin 2. (30, 10): deviation 10, margin -2. (0, 1): deviation .5,
    margin 2.

    Mean (2 - 2 + 2) / 3 for picture 1, whatever unit the second head has; two of three heads agree.
    """
    (row,) = pairs(table({"a": [0.0, 2.0], "b": [30.0, 10.0], "c": [0.0, 1.0]}, "xx"))
    assert (row["chosen"], row["rejected"]) == ("1.png", "0.png")
    assert row["margin"] == pytest.approx(2 / 3) and row["agreement"] == pytest.approx(2 / 3)
    assert (row["margin/a"], row["margin/b"], row["margin/c"]) == (2.0, -20.0, 1.0)


def test_a_head_that_ties_agrees_by_half() -> None:
    """By a: 1 over 0. b ties, c disagrees: (1 + 1/2 + 0) / 3."""
    (row,) = pairs(table({"a": [0.0, 2.0], "b": [7.0, 7.0], "c": [2.0, 1.0]}, "xx"), column="a")
    assert row["agreement"] == pytest.approx(0.5)


def test_a_prompts_offset_changes_nothing() -> None:
    """Scores of one prompt are compared with one another alone."""
    once = pairs(table({"a": [1.0, 2.0, 4.0]}, "xxx"), column="a")
    twice = pairs(table({"a": [101.0, 102.0, 104.0]}, "xxx"), column="a")
    assert chosen(once) == chosen(twice)


# --- drawn by Bradley-Terry -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "expected"), [(1, 0.5), (2, 0.625), (4, 0.69375), (8, 0.72423), (64, 0.74704)]
)
def test_a_pool_of_k_is_curated_as_the_formula_says(k: int, expected: float) -> None:
    """Two kinds, half and half, r = 0 and ln 3: with m of k of the second, it is chosen with 3m /
    (3m + k - m).

    K = 2: (1/4) 0 + (1/2) (3/4) + (1/4) 1 = .625.
    """
    chance = 0.0
    for many in range(k + 1):
        scores = torch.tensor([math.log(3)] * many + [0.0] * (k - many), dtype=torch.float64)
        each = choice_probabilities(scores, k, 1.0)
        chance += math.comb(k, many) / 2**k * each[:many].sum().item()
    assert chance == pytest.approx(expected, abs=5e-6)


@pytest.mark.slow
def test_the_draw_follows_its_probabilities() -> None:
    """r = 0, 1, 2 at temperature 1: the chosen is 2 with e / (1 + e) = .731, as 0 lies above
    nothing.

    Below 2 are 0 and 1, of which 0 is rejected with e / (1 + e) too; so P(2 over 0) = .534, P(2
    over 1) = .197, P(1 over 0) = .269. 4000 prompts: a standard error of .008 at most.
    """
    count, odds = 4000, math.e / (1 + math.e)
    names = [f"p{n}" for n in range(count) for _ in range(3)]
    rows = [{"file_name": f"{n % 3}.png", "prompt": prompt} for n, prompt in enumerate(names)]
    scores = ScoresTable(rows, {"a": [0.0, 1.0, 2.0] * count}, [None] * len(rows), {}, {})
    found = pairs(scores, by="bradley_terry", column="a")
    seen = Counter((row["chosen"][0], row["rejected"][0]) for row in found)
    shares = {pair: n / count for pair, n in seen.items()}
    expected = {("2", "0"): odds**2, ("2", "1"): odds * (1 - odds), ("1", "0"): 1 - odds}
    assert shares == pytest.approx(expected, abs=0.025)


def test_a_cold_draw_takes_the_best_and_the_worst_and_the_seed_decides_the_rest() -> None:
    cold = pairs(ONE, by="bradley_terry", column="clip", temperature=1e-4)
    assert chosen(cold) == chosen(pairs(ONE, by="best_worst", column="clip"))
    many = table({"a": [float(n) for n in range(12)]}, "abab" * 3)
    draws = [
        chosen(pairs(many, by="bradley_terry", column="a", temperature=5.0, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"by": "luck"}, "by: 'luck', want one of margin, best_worst, bradley_terry"),
        ({"column": "hps"}, "column: 'hps' was not scored; want one of clip"),
        ({"min_margin": -1.0}, "min_margin: -1.0"),
        ({"min_margin": math.nan}, "min_margin: nan"),
        ({"per_prompt": 0}, "per_prompt: 0"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"min_margin": 9.0}, "no pairs: 2 prompts, 0 pictures without a score, 6 ties"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        pairs(ONE, **options)


def test_a_row_without_a_prompt_is_named() -> None:
    rows: list[dict[str, Any]] = [{"file_name": "0.png"}]
    with pytest.raises(UserError, match=r"row 0 \(0.png\): has no prompt"):
        pairs(ScoresTable(rows, {"a": [1.0]}, [None], {}, {}))


# --- keeping --------------------------------------------------------------------------------------


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    media = (
        torch.rand(4, 3, 6, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    )
    return write_gallery(tmp_path / "g", media, [{"prompt": p} for p in "aabb"])


def mined(gallery: Gallery) -> Pairs:
    return pairs(
        ScoresTable(
            gallery.rows, {"x": [1.0, 2.0, 4.0, 3.5], "y": [0.0, 1.0, 0.0, 1.0]}, [None] * 4, {}, {}
        ),
        column="x",
    )


def test_pairs_come_back_with_their_pictures(gallery: Gallery, tmp_path: Path) -> None:
    """Every number and every pixel, also once the gallery is gone."""
    rows = mined(gallery)
    pixels = {gallery.rows[n]["file_name"]: gallery.image(n) for n in range(4)}
    write_pairs(tmp_path / "pairs.parquet", rows, gallery.folder)
    gallery.folder.rename(tmp_path / "elsewhere")
    found = read_pairs(tmp_path / "pairs.parquet")
    for row, back in zip(rows, found, strict=True):
        for side in ("chosen", "rejected"):
            assert torch.equal(back[side].read(), pixels[row[side]])
        kept = {key: value for key, value in back.items() if key not in ("chosen", "rejected")}
        assert kept == {"label": 1} | {key: row[key] for key in kept if key != "label"}
        assert {"margin", "agreement", "margin/x", "margin/y", "prompt"} <= kept.keys()


def test_many_pairs_are_written_in_parts(gallery: Gallery, tmp_path: Path) -> None:
    rows = [mined(gallery)[n % 2] | {"n": n} for n in range(150)]
    write_pairs(tmp_path / "pairs.parquet", rows, gallery.folder)
    assert pq.ParquetFile(tmp_path / "pairs.parquet").num_row_groups == 3
    assert [row["n"] for row in read_pairs(tmp_path / "pairs.parquet")] == list(range(150))


def test_the_datasets_library_decodes_the_pictures(gallery: Gallery, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_pairs(tmp_path / "pairs.parquet", mined(gallery), gallery.folder)
    found = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "pairs.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert isinstance(found.features["chosen"], datasets.Image)
    assert found.features["margin"].dtype == "float64" and found.features["label"].dtype == "int64"
    for row, ours in zip(found, read_pairs(tmp_path / "pairs.parquet"), strict=True):
        assert isinstance(row["chosen"], Image.Image) and row["chosen"].size == (8, 6)
        pixels = (
            torch.tensor(list(row["rejected"].convert("RGB").tobytes()))
            .view(6, 8, 3)
            .permute(2, 0, 1)
            / 255
        )
        torch.testing.assert_close(pixels, ours["rejected"].read())


def test_the_schema_is_the_one_the_datasets_library_writes(
    gallery: Gallery, tmp_path: Path
) -> None:
    """Its own words for a column of pictures, without the library at hand."""
    write_pairs(tmp_path / "pairs.parquet", mined(gallery), gallery.folder)
    schema = pq.read_schema(tmp_path / "pairs.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["chosen"] == {"_type": "Image"} and features["prompt"] == {
        "dtype": "string",
        "_type": "Value",
    }
    assert list(features) == schema.names
    assert str(schema.field("chosen").type) == "struct<bytes: binary, path: string>"


@pytest.mark.slow
def test_videos_are_called_videos(tmp_path: Path) -> None:
    clips = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gallery = write_gallery(tmp_path / "g", clips, [{"prompt": "a"}] * 2)
    write_pairs(
        tmp_path / "p.parquet",
        [{"prompt": "a", "chosen": "00000.mp4", "rejected": "00001.mp4"}],
        gallery.folder,
    )
    features = json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"huggingface"])["info"][
        "features"
    ]
    assert features["rejected"] == {"_type": "Video"}
    (row,) = read_pairs(tmp_path / "p.parquet")
    assert torch.equal(row["chosen"].read(), gallery.media(0))


@pytest.mark.parametrize(
    "keys", [("chosen", "rejected"), ("chosen_file_name", "rejected_file_name")]
)
def test_a_folder_of_pairs(gallery: Gallery, keys: tuple[str, str]) -> None:
    row = {"prompt": "a", keys[0]: "00001.png", keys[1]: "00000.png", "votes": 0.75}
    (gallery.folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_pairs(gallery.folder)
    assert torch.equal(found["chosen"].read(), gallery.image(1)) and found["votes"] == 0.75
    assert torch.equal(found["rejected"].read(), gallery.image(0))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "", None, 3, "a\0b.png"])
def test_no_pair_reaches_out_of_its_folder(gallery: Gallery, tmp_path: Path, name: Any) -> None:
    row = {"prompt": "a", "chosen": name, "rejected": "00000.png"}
    with pytest.raises(UserError, match="file_name"):
        write_pairs(tmp_path / "p.parquet", [row], gallery.folder)
    (gallery.folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"line 1, chosen"):
        read_pairs(gallery.folder)
    assert not list(tmp_path.glob("*.parquet*"))


def test_a_broken_picture_is_named_and_nothing_is_left_behind(
    gallery: Gallery, tmp_path: Path
) -> None:
    gallery.path(1).write_bytes(gallery.path(1).read_bytes()[:60])
    with pytest.raises(UserError, match=r"00001.png: .*want every picture of a pair readable"):
        write_pairs(tmp_path / "p.parquet", mined(gallery), gallery.folder)
    assert not [path for path in tmp_path.iterdir() if "parquet" in path.name]


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x", "x.mp4"])
def test_bytes_that_are_no_picture_cannot_be_read(name: str) -> None:
    with pytest.raises(UnreadablePicture):
        MediaFile(name, b"GIF89a not a picture").read()


def test_what_is_not_pairs_is_said(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; want pairs as Parquet"):
        read_pairs(tmp_path / "nowhere.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a Parquet file of pairs"):
        read_pairs(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="line 1, chosen: file_name is None"):
        read_pairs(gallery.folder)  # a gallery of single pictures
    ScoresTable(gallery.rows, {"x": [1.0] * 4}, [None] * 4, {}, {}).save(
        tmp_path / "scores.parquet"
    )
    with pytest.raises(UserError, match="row 0, chosen: want bytes and path"):
        read_pairs(tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="pictures and videos"):
        write_pairs(
            tmp_path / "p.parquet",
            [{"prompt": "a", "chosen": "0.png", "rejected": "0.mp4"}],
            tmp_path,
        )
    with pytest.raises(UserError, match="none to write"):
        write_pairs(tmp_path / "p.parquet", [], tmp_path)


def test_mined_pairs_agree_with_an_exhaustive_search() -> None:
    """Every pair of every prompt, by two plain loops."""
    g = torch.Generator().manual_seed(3)
    values, prompts = torch.randn(20, generator=g).tolist(), "abcab" * 4
    scores = table({"a": list[float | None](values)}, prompts)
    found = {(row["chosen"], row["rejected"]) for row in pairs(scores, column="a")}
    expected = {
        (f"{i}.png", f"{j}.png")
        for i, j in itertools.permutations(range(20), 2)
        if prompts[i] == prompts[j] and values[i] > values[j]
    }
    assert found == expected and len(found) > 50
