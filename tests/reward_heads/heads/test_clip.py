"""CLIP as a reward: VLM-RM's formula by hand and by law, and open_clip itself as the oracle of the
rest.
"""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from align_gen.reward_heads import load
from align_gen.reward_heads.backbones.preprocess import fit_square
from align_gen.reward_heads.heads.clip import ClipHead, goal_baseline
from tests.kits.clips import SIZE, media, write_clip

GOAL, BASELINE = ["a shiny thing", "a gleaming thing"], ["a thing"]


@pytest.fixture(scope="module", params=["resnet", "vit"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random open_clip model, as open_clip's own folders are, with the architecture of either
    kind.
    """
    return write_clip(tmp_path_factory.mktemp("clip") / request.param, request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "small", "vit")


# --- the formula ----------------------------------------------------------------------------------


def unit(*values: float) -> Tensor:
    return F.normalize(torch.tensor(values, dtype=torch.float64), dim=0)


def units(count: int, width: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, width, generator=g, dtype=torch.float64), dim=-1)


G, B, S = unit(1, 2, 0.5), unit(1, 0.2, 0.3), unit(0.3, 1, 1)
ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 0.845289), (0.5, 0.960542), (1.0, 0.998959)])
def test_golden_values(alpha: float, expected: float) -> None:
    """g = (1, 2, .5), b = (1, .2, .3), s = (.3, 1, 1), each normalised first."""
    assert goal_baseline(S[None], G, B, alpha).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_the_paper_and_its_code(alpha: float) -> None:
    """Eq. 3 with proj_L s = g + d d^T (s - g) / |d|^2; the code's matrix P = alpha d d^T/|d|^2 +
    (1-alpha) I.
    """
    g, b, images = units(22, 7).split([1, 1, 20])
    g, b = g[0], b[0]
    d = g - b
    projected = g + ((images - g) @ d)[:, None] * d / d.dot(d)
    paper = 1 - 0.5 * (alpha * projected + (1 - alpha) * images - g).square().sum(-1)
    matrix = alpha * torch.outer(d, d) / d.dot(d) + (1 - alpha) * torch.eye(7, dtype=torch.float64)
    code = 1 - 0.5 * ((images - g) @ matrix).square().sum(-1)
    found = goal_baseline(images, g, b, alpha)
    torch.testing.assert_close(found, paper, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, code, rtol=0, atol=1e-12)


def test_alpha_zero_is_the_cosine() -> None:
    """1 - |s - g|^2 / 2 = s . g for unit vectors, to 1e-7."""
    images = units(50, 9)
    g, b = images[0], images[1]
    torch.testing.assert_close(goal_baseline(images, g, b, 0.0), images @ g, rtol=0, atol=1e-7)


def test_alpha_one_ignores_what_lies_across_the_line() -> None:
    """Adding u with u . d = 0 changes nothing; adding it at alpha < 1 does."""
    d = G - B
    u = torch.linalg.cross(d, torch.tensor([0.2, -1.0, 0.4], dtype=torch.float64))
    assert abs(u.dot(d).item()) < 1e-12
    moved, still = (goal_baseline((S + x)[None], G, B, 1.0) for x in (u, 0 * u))
    torch.testing.assert_close(moved, still, rtol=0, atol=1e-12)
    assert (
        goal_baseline((S + u)[None], G, B, 0.5) - goal_baseline(S[None], G, B, 0.5)
    ).abs() > 1e-3


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_goal_scores_one_and_the_baseline_what_lies_between(alpha: float) -> None:
    """s = g: nothing left. s = b: s - g = -d lies along d, so R = 1 - |d|^2 / 2 at every alpha."""
    assert goal_baseline(G[None], G, B, alpha).item() == pytest.approx(1, abs=1e-12)
    assert goal_baseline(B[None], G, B, alpha).item() == pytest.approx(
        1 - (G - B).square().sum().item() / 2, abs=1e-12
    )


def test_never_falls_with_alpha() -> None:
    """P_alpha shrinks the part across d and leaves the one along it."""
    images = units(100, 3)
    scores = torch.stack([goal_baseline(images, G, B, alpha) for alpha in ALPHAS])
    assert bool((scores.diff(dim=0) >= -1e-12).all()) and scores.max() <= 1


def test_goals_of_each_sample() -> None:
    """(B, D) goals give row by row what (D,) goals give."""
    rows = goal_baseline(torch.stack([S, B]), torch.stack([G, S]), torch.stack([B, G]), 0.5)
    each = torch.cat([goal_baseline(S[None], G, B, 0.5), goal_baseline(B[None], S, G, 0.5)])
    torch.testing.assert_close(rows, each)


# --- the head against open_clip -------------------------------------------------------------------


def test_equals_open_clip_on_pngs(folder: Path, tmp_path: Path) -> None:
    """Its own loading, transforms, tokenizer and encoders, on pictures of the model's size: to
    1e-6.
    """
    pictures, prompts = media(), ["a dog", "a cat", "a thing", "a dog"]
    oracle, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    oracle.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    inputs = []
    for i, picture in enumerate(pictures):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(
            tmp_path / f"{i}.png"
        )
        inputs.append(preprocess(Image.open(tmp_path / f"{i}.png")))
    with torch.no_grad():
        image = oracle.encode_image(torch.stack(inputs), normalize=True)
        text = oracle.encode_text(tokenizer(prompts), normalize=True)
        goals = F.normalize(oracle.encode_text(tokenizer(GOAL), normalize=True).mean(0), dim=0)
        baseline = oracle.encode_text(tokenizer(BASELINE), normalize=True)[0]
    assert image.std(0).max() > 1e-3  # the pictures do differ
    torch.testing.assert_close(
        ClipHead(str(folder))(pictures, prompts), (image * text).sum(-1), rtol=0, atol=1e-6
    )
    towards = ClipHead(str(folder), goal=GOAL)(pictures, prompts)
    torch.testing.assert_close(towards, image @ goals, rtol=0, atol=1e-6)
    regularised = ClipHead(str(folder), goal=GOAL, baseline=BASELINE, alpha=0.5)(pictures, prompts)
    torch.testing.assert_close(
        regularised, goal_baseline(image, goals, baseline, 0.5), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", [(48, 48), (20, 44)])
def test_other_sizes_are_squashed_as_open_clip_does(folder: Path, size: tuple[int, int]) -> None:
    """Pillow rounds to bytes on the way, once a direction: within 1.5 levels of our resize, which
    does not.
    """
    picture = F.interpolate(media(1, 8), size, mode="bilinear").clamp(0, 1)
    picture = (picture * 255).round() / 255
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    head = ClipHead(str(folder))
    theirs = preprocess(Image.fromarray((picture[0] * 255).round().byte().permute(1, 2, 0).numpy()))
    theirs = theirs * head.clip.std.view(3, 1, 1) + head.clip.mean.view(3, 1, 1)
    ours = fit_square(picture, SIZE, "squash")[0]
    assert (ours - theirs).abs().max() <= 1.5 / 255


def test_shortest_crops_the_centre() -> None:
    """20 x 44 -> 32 x 70, of which columns 19 to 50 stay: a picture that varies along x only,
    compared there.
    """
    ramp = torch.linspace(0, 1, 44).expand(1, 3, 20, 44)
    found = fit_square(ramp, SIZE, "shortest")
    expected = F.interpolate(ramp, (32, 70), mode="bicubic", antialias=True)[..., 19:51]
    assert found.shape == (1, 3, SIZE, SIZE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[..., 15:17].mean(), torch.tensor(0.5), rtol=0, atol=1e-3)


def test_the_right_size_is_not_touched() -> None:
    pictures = media()
    assert fit_square(pictures, SIZE, "squash") is pictures


# --- the head itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, 40])
def test_gradients_reach_the_pixels(small: Path, size: int) -> None:
    """The directional derivative of the reward equals its finite difference."""
    head = ClipHead(str(small), goal=GOAL, baseline=BASELINE)
    head.clip.model.double()  # only the finite difference needs it
    picture = (media(1, size) * 0.5 + 0.25).requires_grad_()
    head(picture, [""]).sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0 and head.differentiable
    step = picture.grad / picture.grad.norm()
    with torch.no_grad():
        change = head(picture + 0.1 * step, [""]) - head(picture - 0.1 * step, [""])
    assert change.item() == pytest.approx(0.2 * picture.grad.norm().item(), rel=0.05)
    assert not any(p.requires_grad for p in head.clip.model.parameters())


def test_one_picture_is_a_batch(folder: Path) -> None:
    """B = 1 gives (1,), and the score does not depend on batch mates (1e-6)."""
    head, pictures = ClipHead(str(folder)), media()
    alone = torch.cat([head(pictures[i : i + 1], ["a dog"]) for i in range(4)])
    assert head(pictures[:1], ["a dog"]).shape == (1,)
    torch.testing.assert_close(alone, head(pictures, ["a dog"] * 4), rtol=0, atol=1e-6)


def test_each_distinct_prompt_is_encoded_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, encoded = ClipHead(str(small)), []
    real = head.clip.model.encode_text

    def count(tokens: Tensor) -> Tensor:
        encoded.append(len(tokens))
        return real(tokens)

    monkeypatch.setattr(head.clip.model, "encode_text", count)
    first = head(media(), ["a", "b", "a", "a"])
    assert encoded == [2]
    again = head(media(), ["b", "a", "c", "a"])
    assert encoded == [2, 1]
    torch.testing.assert_close(first[3], again[3])


def test_a_goal_may_quote_the_prompt(small: Path) -> None:
    """Row by row what a head with the filled-in sentence gives."""
    quoting = ClipHead(str(small), goal="a shiny {prompt}", baseline="a {prompt}")
    found = quoting(media(2), ["dog", "cat"])
    for i, prompt in enumerate(["dog", "cat"]):
        filled = ClipHead(str(small), goal=f"a shiny {prompt}", baseline=f"a {prompt}")
        torch.testing.assert_close(
            found[i : i + 1], filled(media(2)[i : i + 1], [""]), rtol=0, atol=1e-6
        )


def test_several_sentences_are_averaged_and_normalised_again(small: Path) -> None:
    """With alpha = 0 the score stays a cosine: the mean goal, normalised, scores 1 against
    itself.
    """
    head = ClipHead(str(small), goal=GOAL, baseline=BASELINE, alpha=0.0)
    goal = head._mean_embedding(GOAL, [])
    assert goal.norm().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(
        head(media(), [""] * 4), head.embed_images(media()) @ goal, rtol=0, atol=1e-6
    )


def test_equal_goal_and_baseline_are_finite(small: Path) -> None:
    """d = 0 has no direction: what is left is (1 - alpha)^2 of the distance, and no NaN."""
    assert bool(ClipHead(str(small), goal="a", baseline="a")(media(), [""] * 4).isfinite().all())


# --- provenance -----------------------------------------------------------------------------------


def test_provenance_follows_weights_and_options(small: Path, tmp_path: Path) -> None:
    """One number of one weight moved by one unit in the last place is another model; loading again
    is not.
    """
    first = ClipHead(str(small), goal="a").provenance()
    assert first == ClipHead(str(small), goal="a").provenance()
    assert first["options"] != ClipHead(str(small), goal="b").provenance()["options"]
    assert (
        first["preprocessing"]
        != ClipHead(str(small), goal="a", resize="shortest").provenance()["preprocessing"]
    )
    assert len(first["weights_sha256"]) == 64 and first["dtype"] == "float32"

    for file in small.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    moved = weights["visual.proj"]
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(9.0))
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    other = ClipHead(str(tmp_path), goal="a").provenance()
    assert other["weights_sha256"] != first["weights_sha256"]
    assert {**other, "weights_sha256": ""} == {**first, "weights_sha256": ""}


@pytest.mark.parametrize(
    ("short", "long"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]
)
def test_both_spellings_of_a_precision_are_one(small: Path, short: Any, long: Any) -> None:
    one, other = ClipHead(str(small), dtype=short), ClipHead(str(small), dtype=long)
    assert one.clip is other.clip
    assert one.provenance()["dtype"] == long


def test_half_precision_is_said_and_close(small: Path) -> None:
    half, full = ClipHead(str(small), dtype="bfloat16"), ClipHead(str(small))
    assert half.provenance()["dtype"] == "bfloat16"
    scores = half(media(), ["a"] * 4)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, full(media(), ["a"] * 4), rtol=0, atol=0.02)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"alpha": 1.5}, r"clip alpha: want a number in \[0, 1\], got 1.5"),
        ({"baseline": "a thing"}, "clip baseline: needs a goal"),
        ({"resize": "stretch"}, "resize: want squash or shortest"),
        ({"goal": []}, "clip goal: want one or more sentences"),
        ({"goal": [3]}, r"goal: want a list \(each a text\)"),
        ({"dtype": "int8"}, "dtype: want float32, bfloat16"),
        ({"path": "ViT-Z-99"}, "path 'ViT-Z-99': want a folder, hf-hub"),
        ({"path": "ViT-B-32"}, "path 'ViT-B-32': an architecture needs pretrained"),
        ({"path": "./nowhere"}, r"path ./nowhere: want an open_clip folder"),
        ({"colour": 1}, "options are"),
    ],
    ids=str,
)
def test_a_mistake_is_named(small: Path, options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        load("clip", **{"path": str(small), **options})


def test_a_folder_without_weights_is_named(small: Path, tmp_path: Path) -> None:
    """Never a model of random weights, and the folder in one line."""
    for file in small.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=str(tmp_path)):
        load("clip", path=str(tmp_path))
