"""HPDv2: its arithmetic by hand, a layout that is whole or refused, and scores that end in the
right cell.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from align_gen.errors import UserError
from align_gen.galleries.hpdv2 import (
    PUBLISHED,
    STYLES,
    Line,
    Table,
    aggregate,
    group_means,
    published,
    read_hpdv2,
    run_hpdv2,
)
from align_gen.reward_heads import RewardHead
from align_gen.reward_heads.heads.hps import HpsHead

REAL: dict[str, Any] = {
    "preprocessing": "hps-1-antialias",
    "options": {"architecture": "ViT-H-14", "version": "v2.0"},
}


class Level(RewardHead):
    """The mean pixel: a thousandth of the picture's level. Says which prompts it saw."""

    def __init__(self, cosine: bool) -> None:
        self.range = (-1.0, 1.0) if cosine else (0.0, 1.0)
        self.prompts: list[str] = []

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        self.prompts += prompts
        return media.mean((1, 2, 3)) * 0.255


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every picture of style n is filled with 10 + n, but the first 80 of `photo` with 33. Links
    keep it quick.
    """
    root = tmp_path / "mine"
    for n, style in enumerate(STYLES):
        (root / style).mkdir(parents=True)
        for level in (10 + n, 33):
            Image.new("RGB", (2, 2), (level,) * 3).save(tmp_path / f"{level}.png")
        for number in range(800):
            level = 33 if style == "photo" and number < 80 else 10 + n
            os.link(tmp_path / f"{level}.png", root / style / f"{number:05d}.jpg")
        (root / f"{style}.json").write_text(
            json.dumps([f"{style} {number}" for number in range(800)])
        )
    return root


# --- arithmetic -----------------------------------------------------------------------------------


def test_a_style_is_the_mean_of_ten_group_means() -> None:
    """0 … 799: group g has the mean 39.5 + 80 g; mean 399.5, deviation 80 * sqrt((10^2 - 1) / 12) =
    229.78.
    """
    assert group_means(list(range(800))) == [39.5 + 80 * g for g in range(10)]
    line = aggregate({"anime": list(range(800)), "photo": [1.0] * 800}, "hps", "mine")
    assert line.styles == {"anime": 399.5, "photo": 1.0}
    assert line.deviations is not None
    assert (
        line.deviations["anime"] == pytest.approx(80 * (99 / 12) ** 0.5)
        and line.deviations["photo"] == 0
    )
    assert round(line.deviations["anime"], 2) == 229.78
    assert line.average == (399.5 + 1) / 2  # of all pictures


def test_the_formulas_are_those_of_the_published_code() -> None:
    """NumPy's mean and std over slices of 80, as its evaluation has them, on random scores."""
    scores = np.random.RandomState(0).normal(27, 2, (4, 800))
    line = aggregate(dict(zip(STYLES, scores.tolist(), strict=True)), "hps", "mine")
    for style, row in zip(STYLES, scores, strict=True):
        means = [np.mean(row[i : i + 80]) for i in range(0, 800, 80)]
        assert line.deviations is not None
        assert line.styles[style] == pytest.approx(np.mean(means)) and line.deviations[
            style
        ] == pytest.approx(np.std(means))
    assert line.average == pytest.approx(scores.mean())


def test_published_averages_are_those_of_their_styles() -> None:
    """Four styles of equal size: a row's average is their mean, to the rounding of its figures."""
    rows = [figures for version in PUBLISHED.values() for figures in version.values()]
    assert len(rows) == 14
    for *styles, average in rows:
        assert sum(styles) / 4 == pytest.approx(average, abs=0.0101)


# --- from pictures to the table -------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_are_scored_with_their_own_prompts_into_their_own_cells(root: Path) -> None:
    """Levels of 10, 11, 12 thousandths, times 100; of photo one group of ten is 3.3 and nine are
    1.3: mean 1.5, deviation 2 * sqrt(.1 * .9) = 0.6; average (1.0 + 1.1 + 1.2 + 1.5) / 4 = 1.2.
    """
    cosine, plain, told = Level(cosine=True), Level(cosine=False), []
    rewards = {"mine": {"name": cosine}, "plain": {"name": plain}}
    table = run_hpdv2(
        root, None, rewards, progress=lambda phase, done, total, numbers: told.append((done, total))
    )
    first, second = table.lines
    assert (first.reward, first.model, first.published) == ("mine", "mine", False)
    assert first.styles == pytest.approx(
        {"anime": 1.0, "concept-art": 1.1, "paintings": 1.2, "photo": 1.5}
    )
    assert first.deviations == pytest.approx(
        {"anime": 0, "concept-art": 0, "paintings": 0, "photo": 0.6}, abs=1e-6
    )
    assert first.average == pytest.approx(1.2)
    assert second.average == pytest.approx(0.012)  # not a cosine: as it is
    assert told[-1] == (3200, 3200)
    assert sorted(cosine.prompts) == sorted(
        f"{style} {number}" for style in STYLES for number in range(800)
    )


def test_rows_are_in_the_order_of_files(root: Path) -> None:
    rows = read_hpdv2(root).rows
    assert len(rows) == 3200
    assert rows[0] == {
        "file_name": "anime/00000.jpg",
        "prompt": "anime 0",
        "style": "anime",
        "number": 0,
    }
    assert rows[801] == {
        "file_name": "concept-art/00001.jpg",
        "prompt": "concept-art 1",
        "style": "concept-art",
        "number": 1,
    }
    assert rows[-1]["file_name"] == "photo/00799.jpg"


def test_what_sample_writes_is_read_too(root: Path) -> None:
    """PNG files and their metadata, a prompt folder elsewhere, hidden files of the system."""
    for number in range(800):
        (root / "anime" / f"{number:05d}.jpg").rename(root / "anime" / f"{number:05d}.png")
    (root / "anime" / "metadata.jsonl").touch()
    (root / ".DS_Store").touch()
    elsewhere = root.parent / "prompts"
    elsewhere.mkdir()
    for style in STYLES:
        (root / f"{style}.json").rename(elsewhere / f"{style}.json")
    rows = read_hpdv2(root, elsewhere).rows
    assert (
        rows[799]["file_name"] == "anime/00799.png"
        and rows[800]["file_name"] == "concept-art/00000.jpg"
    )


def test_published_lines_stand_beside_their_own_version_only() -> None:
    of = {
        version: published("hps", {**REAL, "options": {**REAL["options"], "version": version}})
        for version in PUBLISHED
    }
    assert [line.model for line in of["v2.0"]] == list(PUBLISHED["v2.0"])
    first = next(line for line in of["v2.0"] if line.model == "Stable Diffusion v1.4")
    assert first.styles == {
        "anime": 27.26,
        "concept-art": 26.61,
        "paintings": 26.66,
        "photo": 27.27,
    }
    assert first.average == 26.95 and first.published and first.deviations is None
    assert {line.average for line in of["v2.1"]}.isdisjoint(line.average for line in of["v2.0"])


@pytest.mark.parametrize(
    "provenance",
    [
        {**REAL, "options": {"architecture": None, "version": "v2.0"}},
        {**REAL, "options": {"architecture": "ViT-B-32", "version": "v2.0"}},
        {**REAL, "preprocessing": "clip-1-squash"},
    ],
    ids=["an open_clip folder", "another architecture", "another head"],
)
def test_another_model_has_no_published_lines(provenance: dict[str, Any]) -> None:
    assert published("hps", provenance) == []


def test_the_head_says_what_published_lines_are_chosen_by(tmp_path: Path) -> None:
    """A real head of an open_clip folder has none; called the published architecture, those of its
    version.
    """
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    head = HpsHead(str(tmp_path), version="v2.1")
    assert published("hps", head.provenance()) == []
    head.architecture = "ViT-H-14"
    assert [line.model for line in published("hps", head.provenance())] == list(PUBLISHED["v2.1"])


def test_a_table_prints_and_is_json() -> None:
    own = Line("hps", "mine", dict.fromkeys(STYLES, 27.0), 27.0, dict.fromkeys(STYLES, 0.12))
    table = Table("hpdv2", [own, *published("hps", REAL)])
    text = table.to_text()
    assert len(text) == 2 + len(PUBLISHED["v2.0"])
    assert text[1].split() == ["hps", "mine", *["27.00", "±", "0.12"] * 4, "27.00"]
    assert text[4].split() == [
        "hps",
        "Stable",
        "Diffusion",
        "v1.4",
        "27.26",
        "26.61",
        "26.66",
        "27.27",
        "26.95",
        "published",
    ]
    ends = [row.index(style) + len(style) for row, style in ((text[0], style) for style in STYLES)]
    assert all(
        text[1][end - 14 : end].split() == ["27.00", "±", "0.12"] for end in ends
    )  # cells under their heads
    again = json.loads(json.dumps(table.to_json()))
    assert again["suite"] == "hpdv2" and again["lines"][0]["styles"]["photo"] == 27.0


# --- what is not whole is refused -----------------------------------------------------------------


def test_missing_pictures_are_counted_and_the_first_named(root: Path) -> None:
    for name in ("paintings/00003.jpg", "photo/00799.jpg", "paintings/00500.jpg"):
        (root / name).unlink()
    with pytest.raises(
        UserError, match=r"mine: 3 of 3200 pictures are missing, first paintings/00003\.jpg"
    ):
        read_hpdv2(root)


def test_a_missing_style_is_missing_pictures(root: Path) -> None:
    (root / "anime").rename(root.parent / "anime")
    with pytest.raises(
        UserError, match=r"800 of 3200 pictures are missing, first anime/00000\.jpg"
    ):
        read_hpdv2(root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stray", ["sketches/", "anime/00800.jpg", "anime/00000.png", "photo/notes.txt", "notes.json"]
)
def test_what_lies_there_besides_is_named(root: Path, stray: str) -> None:
    if stray.endswith("/"):
        (root / stray).mkdir()
    else:
        (root / stray).touch()
    with pytest.raises(
        UserError, match=f"holds '{Path(stray).name}', which the benchmark does not know; want"
    ):
        read_hpdv2(root)


@pytest.mark.slow
def test_an_unreadable_picture_fails_the_run(root: Path) -> None:
    (root / "photo" / "00005.jpg").unlink()
    (root / "photo" / "00005.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"photo/00005\.jpg: not a PNG, JPEG or WebP picture"):
        run_hpdv2(root, None, {"mine": {"name": Level(cosine=True)}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "held"),
    [
        (None, "no such file"),
        ("[", "cannot be read as JSON"),
        ('{"a": 1}', "holds dict"),
        ('["a"]', "holds a list of 1"),
        (json.dumps([1] * 800), "holds a list of 800"),
    ],
    ids=["missing", "cut", "object", "short", "numbers"],
)
def test_a_prompt_file_is_800_strings(root: Path, text: str | None, held: str) -> None:
    file = root / "photo.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=rf"photo\.json: {held}.*; want a list of 800 prompts"):
        read_hpdv2(root)


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; want one with the folders anime"):
        read_hpdv2(tmp_path / "nowhere")


def test_an_unknown_reward_is_named(root: Path) -> None:
    with pytest.raises(UserError, match="no reward 'beauty'"):
        run_hpdv2(root, None, ["beauty"])
