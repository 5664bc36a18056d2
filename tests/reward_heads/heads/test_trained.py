"""Trained heads: what is written is what is read, by arithmetic on weights set by hand; and hostile
folders.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from align_gen.reward_heads.backbones.head_folder import BUNDLED, find_base, save_head
from align_gen.reward_heads.backbones.open_clip_model import OpenClip
from align_gen.reward_heads.backbones.scorer import blocks_of
from align_gen.reward_heads.heads.clip import ClipHead
from align_gen.reward_heads.heads.trained import ImageScorer, TrainedHead
from tests.kits.clips import SIZE, media, write_clip

PROMPTS = ["a dog", "a cat", "a dog", "a fox"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "base", "vit")


def about(base: Path, count: int, **changes: Any) -> dict[str, Any]:
    sha = OpenClip.load(str(base)).sha256
    facts = {"base": f"../{base.name}", "pretrained": None, "base_sha256": sha, "resize": "squash"}
    return {**facts, "mean": [0.0] * count, "std": [1.0] * count, **changes}


def cosine_head(base: Path, name: str = "head", **changes: Any) -> Path:
    """A folder beside the base of two dimensions: the cosine by hand, and the text's first
    number.
    """
    scorer = ImageScorer(16, ["cosine", "text"])
    with torch.no_grad():
        for value in scorer.parameters():
            value.zero_()
        scorer.towers[0].weight[0, 32:] = 1 / 16  # type: ignore[operator]
        scorer.towers[1].weight[0, 16] = 1.0  # type: ignore[operator]
    folder = base.parent / name
    folder.mkdir(exist_ok=True)
    save_head(folder, scorer, about(base, 2, **changes))
    return folder


# --- features -------------------------------------------------------------------------------------


def test_features_are_image_text_and_their_product() -> None:
    """D = 4, so the root is 2: 2 i, 2 t, 4 i t; the last sums to 4 cos."""
    image, text = torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert blocks_of(image, text=text).tolist() == [[1, 1, 1, 1, 2, 0, 0, 0, 2, 0, 0, 0]]


def test_a_tower_that_sums_the_product_is_the_cosine(base: Path) -> None:
    """Against ClipHead, on sizes that must be squashed."""
    pictures = F.interpolate(media(), (40, 24))
    found = TrainedHead(str(cosine_head(base)), dimension="cosine")(pictures, PROMPTS)
    torch.testing.assert_close(found, ClipHead(str(base))(pictures, PROMPTS), rtol=0, atol=1e-5)


def test_one_picture_is_a_batch(base: Path) -> None:
    head = TrainedHead(str(cosine_head(base)))
    assert head(media(1), ["a"]).shape == (1,)
    alone = torch.cat([head(media()[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, head(media(), PROMPTS), rtol=0, atol=1e-5)


def test_gradients_reach_the_pixels_and_nothing_else(base: Path) -> None:
    head = TrainedHead(str(cosine_head(base)), dimension="cosine")
    pictures = media().requires_grad_()
    head(pictures, PROMPTS).sum().backward()
    oracle = media().requires_grad_()
    ClipHead(str(base))(oracle, PROMPTS).sum().backward()
    assert pictures.grad is not None and oracle.grad is not None and head.differentiable
    torch.testing.assert_close(pictures.grad, oracle.grad, rtol=1e-3, atol=1e-7)
    assert not any(value.requires_grad for value in head.scorer.parameters())


# --- dimensions -----------------------------------------------------------------------------------


def test_dimensions_are_normalised_and_summed(base: Path) -> None:
    """(r - mean) / std of each, by hand: mean (.5, -1), std (2, .25)."""
    plain = TrainedHead(str(cosine_head(base)))
    raw = plain.scorer(plain.features(media(), PROMPTS))
    folder = str(cosine_head(base, "normal", mean=[0.5, -1.0], std=[2.0, 0.25]))
    cosine, text = (raw[:, 0] - 0.5) / 2, (raw[:, 1] + 1) * 4
    torch.testing.assert_close(TrainedHead(folder)(media(), PROMPTS), cosine + text)
    torch.testing.assert_close(TrainedHead(folder, dimension="text")(media(), PROMPTS), text)
    weighted = TrainedHead(folder, weights={"cosine": 3.0, "text": -0.5})(media(), PROMPTS)
    torch.testing.assert_close(weighted, 3 * cosine - 0.5 * text)
    torch.testing.assert_close(
        TrainedHead(folder, weights={"text": 2.0})(media(), PROMPTS), 2 * text
    )


def test_a_hidden_layer_comes_back(base: Path) -> None:
    torch.manual_seed(0)
    scorer = ImageScorer(16, ["a", "b"], hidden=5)
    folder = base.parent / "hidden"
    folder.mkdir()
    save_head(folder, scorer, about(base, 2))
    head = TrainedHead(str(folder))
    torch.testing.assert_close(
        head.scores(media(), PROMPTS), scorer(head.features(media(), PROMPTS))
    )


# --- where the base is ----------------------------------------------------------------------------


def test_a_base_is_found_beside_the_head_then_among_the_bundled_then_by_name(base: Path) -> None:
    folder = cosine_head(base)
    assert Path(find_base(folder, f"../{base.name}")).resolve() == base.resolve()
    assert Path(find_base(folder, "emoji-clip")) == BUNDLED / "emoji-clip"
    assert (BUNDLED / "emoji-clip" / "open_clip_config.json").is_file()
    assert find_base(folder, "hf-hub:owner/model") == "hf-hub:owner/model"


def test_another_base_than_its_own_is_refused(base: Path, tmp_path: Path) -> None:
    """A head's numbers mean nothing on other features."""
    other = write_clip(tmp_path / "other", "resnet")
    with pytest.raises(ValueError, match="was trained on another"):
        TrainedHead(str(cosine_head(base)), base=str(other))
    assert TrainedHead(str(cosine_head(base)), base=str(base)).clip.size == SIZE


def test_provenance_follows_weights_base_and_options(base: Path) -> None:
    head = TrainedHead(str(cosine_head(base)))
    same = TrainedHead(str(cosine_head(base))).provenance()
    assert head.provenance() == same and len(same["weights_sha256"]) == 64
    assert same["options"]["base_sha256"] == ClipHead(str(base)).provenance()["weights_sha256"]
    assert (
        TrainedHead(str(cosine_head(base)), dimension="text").provenance()["options"]
        != same["options"]
    )
    head.scorer.towers[0].weight[0, 0] += 1.0  # type: ignore[index,operator]
    assert head.provenance()["weights_sha256"] != same["weights_sha256"]


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"dimension": "beauty"}, "dimension 'beauty': this head has cosine, text"),
        ({"weights": {"beauty": 1.0}}, "dimension 'beauty'"),
        ({"weights": {"text": math.nan}}, "weights: text: want a number, got nan"),
        ({"dimension": "text", "weights": {"text": 1.0}}, "want one of the two"),
    ],
)
def test_a_mistake_is_named(base: Path, options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        TrainedHead(str(cosine_head(base)), **options)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"format": 2}, "want a head of format 1"),
        ({"media": "video"}, "scores a video, want one that scores a image"),
        ({"dimensions": []}, "want as many names"),
        ({"dimensions": ["a", 3]}, "want as many names"),
        ({"std": [1.0, 0.0]}, "std above 0"),
        ({"mean": [1.0]}, "want as many names"),
        ({"mean": [1.0, None]}, "want finite numbers"),
        ({"width": 10**12}, "want sizes of layers"),
        ({"width": 15}, "towers.0.weight has shape"),
        ({"hidden": -1}, "want sizes of layers"),
        ({"hidden": True}, "hidden is True"),
        ({"base": None}, "base is None"),
        ({"resize": "stretch"}, "resize is 'stretch'"),
        ({"base": "./nowhere"}, "path ./nowhere"),
    ],
    ids=str,
)
def test_a_broken_folder_is_named(
    base: Path, tmp_path: Path, change: dict[str, Any], pattern: str
) -> None:
    folder = cosine_head(base)
    facts = json.loads((folder / "head.json").read_text()) | {"base": str(base)} | change
    (tmp_path / "head.json").write_text(json.dumps(facts))
    (tmp_path / "head.safetensors").write_bytes((folder / "head.safetensors").read_bytes())
    with pytest.raises(ValueError, match=pattern):
        TrainedHead(str(tmp_path))


def test_a_folder_of_a_tuned_clip_is_another_reward(base: Path) -> None:
    """train-reward writes such a one when it tunes CLIP itself."""
    with pytest.raises(ValueError, match=f"an open_clip model.*want clip:path={base}$"):
        TrainedHead(str(base))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_what_is_no_head_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"no head.json in it; want a folder"):
        TrainedHead(str(tmp_path))
    (tmp_path / "head.json").write_text(text)
    with pytest.raises(ValueError, match=r"head.json: (not JSON|want a head of format 1)"):
        TrainedHead(str(tmp_path))


def test_features_of_what_is_no_picture_are_refused(base: Path) -> None:
    head = TrainedHead(str(cosine_head(base)))
    with pytest.raises(ValueError, match="images: want float"):
        head(torch.zeros(1, 2, 3, SIZE, SIZE), ["a"])


def test_scores_do_not_depend_on_the_tower_beside(base: Path) -> None:
    """A dimension asked alone is the column of all."""
    head = TrainedHead(str(cosine_head(base)))
    found: Tensor = head.scores(media(), PROMPTS)
    for k, name in enumerate(("cosine", "text")):
        torch.testing.assert_close(
            TrainedHead(str(cosine_head(base)), dimension=name)(media(), PROMPTS), found[:, k]
        )


@pytest.mark.parametrize("dimension", ["cosine", "text", None])
def test_another_prompt_gives_another_score_and_the_head_says_so(
    base: Path, dimension: str | None
) -> None:
    head = TrainedHead(str(cosine_head(base)), dimension=dimension)
    assert head.reads_prompt
    assert not torch.equal(head(media(1), ["a dog"]), head(media(1), ["two cats"]))
