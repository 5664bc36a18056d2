"""HPS: its geometry by hand, torchvision's own transforms, and hpsv2 1.2.0 itself as oracles.

What hpsv2 says of a tiny model stands in `tests/goldens/hpsv2`. After `python
scripts/get_hpsv2.py`, tests ask the package itself, and this module run as a program writes the
file anew.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import resize as torchvision_resize

from align_gen.galleries.media import read_picture
from align_gen.pipelines.skeleton import make_fake
from align_gen.reward_heads.backbones import weights
from align_gen.reward_heads.backbones.open_clip_model import OpenClip
from align_gen.reward_heads.heads.hps import FILES, HpsHead, resize_and_pad, scaled_size

ROOT = Path(__file__).resolve().parents[3]
PACKAGE, GOLDEN = ROOT / "build" / "hpsv2", ROOT / "tests" / "goldens" / "hpsv2" / "tiny.json"
SIZE, TINY = 224, "hps-tiny"
VISION = {"image_size": SIZE, "patch_size": 56, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PICTURES = {  # name -> (height, width, mode); (224, 149) is what hpsv2 cannot score
    "square": (96, 96, "RGB"),
    "exact": (224, 224, "RGB"),
    "large": (300, 300, "RGB"),
    "wide": (256, 400, "RGB"),
    "tall": (431, 200, "RGB"),
    "tiny": (9, 5, "RGB"),
    "thin": (3, 301, "RGB"),
    "grey": (70, 100, "L"),
    "transparent": (90, 60, "RGBA"),
}  # fmt: skip
PROMPT = "A Corgi's portrait, 4k &amp; \t sharp"
TEXTS = [PROMPT, "", "naïve café — 東京 🐕", "word " * 200, "don't", "<end_of_text> a", "3.14159"]


# --- a tiny model and pictures, the same on every machine -----------------------------------------


def tiny_state() -> dict[str, Tensor]:
    """Weights of the tiny model, from NumPy's frozen generator; large enough that pictures score
    differently.
    """
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape)
            for name, value in open_clip.CLIP(**CONFIG).state_dict().items()
        }
    draw = np.random.RandomState(0)
    return {
        name: torch.tensor(0.3 * draw.standard_normal(shapes[name])).float() + float("ln_" in name)
        for name in sorted(shapes)
    }


def write_pictures(folder: Path) -> dict[str, Path]:
    """PNG files: blocks of random colours, each with an edge that bicubic overshoots at."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, paths = np.random.RandomState(1), {}
    for name, (height, width, mode) in PICTURES.items():
        blocks = draw.randint(0, 256, (6, 6, len(mode)))
        pixels = np.kron(blocks, np.ones((height // 6 + 1, width // 6 + 1, 1)))[
            :height, :width
        ].astype(np.uint8)
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(
            folder / f"{name}.png"
        )
        paths[name] = folder / f"{name}.png"
    return paths


def on_white(path: Path) -> Image.Image:
    """A picture as hpsv2 must be handed it: RGB, what is transparent laid on white."""
    picture = Image.open(path)
    if picture.mode != "RGBA":
        return picture
    pixels = np.asarray(picture).astype(np.float64)
    colour, alpha = pixels[..., :3], pixels[..., 3:] / 255
    return Image.fromarray(np.round(colour * alpha + 255 * (1 - alpha)).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the published repository is, of the tiny model; open_clip knows its
    architecture.
    """
    return write_checkpoint(tmp_path_factory.mktemp("hps"))


def write_checkpoint(folder: Path) -> Path:
    torch.save({"state_dict": tiny_state()}, folder / FILES["v2.0"])
    (folder / f"{TINY}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{TINY}.json")
    return folder


@pytest.fixture(scope="module")
def head(checkpoint: Path) -> HpsHead:
    return HpsHead(str(checkpoint), architecture=TINY)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "scaled", "bars"),
    [
        ((512, 512), (224, 224), (0, 0, 0, 0)),  # bars: left, top, right, bottom
        (
            (512, 768),
            (149, 224),
            (0, 37, 0, 38),
        ),  # 512 * 224 / 768 = 149.33; 224 - 149 = 75 = 37 + 38
        (
            (1024, 576),
            (224, 126),
            (49, 0, 49, 0),
        ),  # 576 * 224 / 1024 = 126; 224 - 126 = 98 = 2 * 49
        ((149, 224), (149, 224), (0, 37, 0, 38)),  # not resized, yet padded
        ((1, 1000), (1, 224), (0, 111, 0, 112)),  # 0.224 rounds to no pixel at all; one is kept
    ],
    ids=str,
)
@pytest.mark.parametrize("antialias", [True, False])
def test_a_picture_is_centred_between_black_bars(
    given: tuple[int, int],
    scaled: tuple[int, int],
    bars: tuple[int, int, int, int],
    antialias: bool,
) -> None:
    """A white picture stays white under a resize, so what is not 1 is a bar, and bars are 0."""
    left, top, right, bottom = bars
    assert scaled_size(*given, SIZE) == scaled
    found = resize_and_pad(torch.ones(2, 3, *given), SIZE, antialias)
    expected = torch.zeros(2, 3, SIZE, SIZE)
    expected[..., top : SIZE - bottom, left : SIZE - right] = 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_picture_of_the_size_keeps_its_pixels() -> None:
    """224 x 224 to the bit; 149 x 224 to the bit between its bars."""
    square, wide = torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 3, 149, SIZE)
    assert torch.equal(resize_and_pad(square, SIZE), square)
    assert torch.equal(resize_and_pad(wide, SIZE)[..., 37:186, :], wide)


def test_overshoot_is_not_clamped() -> None:
    """A step between black and white overshoots under bicubic, and hpsv2 leaves it so."""
    step = torch.zeros(1, 3, 50, 50)
    step[..., 25:] = 1
    for antialias in (True, False):
        found = resize_and_pad(step, SIZE, antialias)
        assert found.min() < -0.01 and found.max() > 1.01


def test_antialias_is_what_it_says() -> None:
    """Stripes a pixel wide, to a quarter of their size: averaged to grey with it, picked from
    without.
    """
    stripes = (torch.arange(896) % 2).float().expand(1, 3, 896, 896)
    assert (resize_and_pad(stripes, SIZE, True) - 0.5).abs()[..., 8:-8].max() < 0.01
    shifted = torch.roll(stripes, 1, -1) * 0.5 + stripes * 0.25
    torch.testing.assert_close(
        resize_and_pad(shifted, SIZE, False),
        F.interpolate(shifted, (SIZE, SIZE), mode="bicubic", align_corners=False),
        rtol=0,
        atol=0,
    )


# --- torchvision's transforms ---------------------------------------------------------------------


def reference(antialias: bool) -> Any:
    """The published order of transforms, of torchvision's and open_clip's own parts."""

    def longest(picture: Tensor) -> Tensor:
        size = [round(side * (SIZE / max(picture.shape[1:]))) for side in picture.shape[1:]]
        return torchvision_resize(picture, size, InterpolationMode.BICUBIC, antialias=antialias)

    return Compose([ToTensor(), longest, CenterCropOrPad(SIZE), Normalize(MEAN, STD)])


def normalised(path: Path, antialias: bool = True) -> Tensor:
    """What our head's network is given for a file: (3, 224, 224)."""
    fitted = resize_and_pad(read_picture(path)[None], SIZE, antialias)[0]
    return (fitted - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("name", PICTURES)
def test_files_are_prepared_as_torchvision_does(
    pictures: dict[str, Path], name: str, antialias: bool
) -> None:
    """Square, wide, tall, tiny, grey and transparent pictures: the same to 1e-5."""
    theirs = reference(antialias)(on_white(pictures[name]).convert("RGB"))
    torch.testing.assert_close(normalised(pictures[name], antialias), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 300), (256, 400), (431, 200), (30, 20)], ids=str)
def test_smooth_pictures_agree_with_pillow(size: tuple[int, int]) -> None:
    """Pillow's bicubic antialiases too; it rounds to bytes, once a direction: within 1.5 levels."""
    smooth = F.interpolate(torch.rand(1, 3, 5, 5), size, mode="bilinear")
    pixels = (smooth * 255).round()
    pillow = Compose([ResizeKeepRatio(SIZE, longest=1), ToTensor(), CenterCropOrPad(SIZE)])
    theirs = pillow(Image.fromarray(pixels[0].byte().permute(1, 2, 0).numpy()))
    assert (resize_and_pad(pixels / 255, SIZE)[0] - theirs).abs().max() <= 1.5 / 255


def test_the_network_gets_what_is_prepared(head: HpsHead, pictures: dict[str, Path]) -> None:
    """The bars are normalised with the picture: the embedding is that of the normalised square."""
    with torch.no_grad():
        expected = F.normalize(
            head.clip.model.encode_image(normalised(pictures["wide"])[None]), dim=-1
        )
        found = head.embed_images(read_picture(pictures["wide"])[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# --- hpsv2 ----------------------------------------------------------------------------------------


@contextmanager
def hpsv2(checkpoint: Path) -> Iterator[Any]:
    """The package, its `score` ready with the tiny architecture on the CPU."""
    sys.path.insert(0, str(PACKAGE))
    try:
        import hpsv2.img_score as package
        from hpsv2.src.open_clip import create_model_and_transforms, factory
    finally:
        sys.path.remove(str(PACKAGE))
    factory.add_model_config(checkpoint / f"{TINY}.json")
    options = {"precision": "amp", "device": "cpu", "light_augmentation": True, "output_dict": True}
    model, _, preprocess = create_model_and_transforms(TINY, None, **options)
    package.model_dict.update(model=model, preprocess_val=preprocess)
    package.device, package.root_path = "cpu", str(checkpoint)
    yield package
    package.model_dict.clear()


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Iterator[Any]:
    if not (PACKAGE / "hpsv2").is_dir():
        pytest.skip("no hpsv2 here; python scripts/get_hpsv2.py puts it beside the environment")
    with hpsv2(checkpoint) as package:
        yield package


@pytest.mark.parametrize("name", PICTURES)
def test_scores_are_those_of_hpsv2(
    oracle: Any, head: HpsHead, pictures: dict[str, Path], name: str
) -> None:
    picture = on_white(pictures[name])
    theirs = oracle.model_dict["preprocess_val"](picture)
    torch.testing.assert_close(normalised(pictures[name]), theirs, rtol=0, atol=1e-5)
    [score] = oracle.score(picture, PROMPT, cp=str(checkpoint_of(oracle)))
    assert head(read_picture(pictures[name])[None], [PROMPT]).item() == pytest.approx(
        score, abs=1e-5
    )


def checkpoint_of(package: Any) -> Path:
    return Path(package.root_path) / FILES["v2.0"]


def test_a_mixed_batch_scores_as_hpsv2_does_one_by_one(
    oracle: Any, head: HpsHead, pictures: dict[str, Path]
) -> None:
    """Of one size, each with a prompt of its own: what hpsv2 needs a call for each."""
    batch = F.interpolate(
        torch.stack([read_picture(pictures["square"])] * len(TEXTS)), (80, 120), mode="nearest"
    )
    batch = (
        torch.stack([torch.roll(x, 17 * i, -1) for i, x in enumerate(batch)]) * 255
    ).round() / 255
    theirs = [
        oracle.score(Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy()), text,
                     cp=str(checkpoint_of(oracle)))[0]
        for x, text in zip(batch, TEXTS, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(head(batch, TEXTS), torch.tensor(theirs), rtol=0, atol=1e-5)
    assert np.ptp(theirs) > 0.01


def test_what_hpsv2_cannot_score_is_scored(
    oracle: Any, head: HpsHead, pictures: dict[str, Path]
) -> None:
    """Four channels, and a longer side of 224 that is not square: it raises there, and is (1,)
    here.
    """
    for picture in (Image.open(pictures["transparent"]), Image.new("RGB", (224, 149))):
        with pytest.raises(RuntimeError):
            oracle.score(picture, PROMPT, cp=str(checkpoint_of(oracle)))
    assert head(torch.rand(1, 3, 149, 224), [PROMPT]).shape == (1,)


def test_the_golden_file_is_what_hpsv2_says(
    oracle: Any, golden: dict[str, Any], pictures: dict[str, Path]
) -> None:
    """To 1e-5: a file that was edited, or made by another model, does not pass for the package's
    word.
    """
    again = ask(oracle, pictures)
    assert again["tokens"] == golden["tokens"] and again["shapes"] == golden["shapes"]
    assert again["pictures"].keys() == golden["pictures"].keys()
    for name, said in again["pictures"].items():
        assert said["score"] == pytest.approx(golden["pictures"][name]["score"], abs=1e-5)
        assert said["pixels"] == pytest.approx(golden["pictures"][name]["pixels"], abs=1e-5)


# --- what hpsv2 said ------------------------------------------------------------------------------


def sample(prepared: Tensor) -> list[float]:
    """48 pixels of (3, 224, 224), spread over it, and its mean and mean square."""
    picked = prepared.flatten()[np.random.RandomState(2).randint(0, prepared.numel(), 48)]
    return [*picked.tolist(), prepared.mean().item(), prepared.square().mean().item()]


def shapes_of(state: dict[str, Tensor]) -> dict[str, list[Any]]:
    """Weights by name, blocks by their number replaced: how many there are, and their shape."""
    names = [re.sub(r"resblocks\.\d+\.", "resblocks.#.", name) for name in state]
    counts, shapes = (
        Counter(names),
        dict(zip(names, (list(value.shape) for value in state.values()), strict=True)),
    )
    return {name: [counts[name], shapes[name]] for name in sorted(counts)}


def ask(package: Any, paths: dict[str, Path]) -> dict[str, Any]:
    """What the golden file holds."""
    from hpsv2.src.open_clip import factory
    from hpsv2.src.open_clip.model import CLIP

    found: dict[str, Any] = {"pictures": {}, "prompt": PROMPT, "tokens": []}
    for name, path in paths.items():
        prepared = package.model_dict["preprocess_val"](on_white(path))
        [score] = package.score(on_white(path), PROMPT, cp=str(checkpoint_of(package)))
        found["pictures"][name] = {"score": float(score), "pixels": sample(prepared)}
    for row in package.get_tokenizer("ViT-H-14")(TEXTS):
        found["tokens"].append(row[: int(row.argmax()) + 1].tolist())
    with torch.device("meta"):
        found["shapes"] = shapes_of(CLIP(**factory.get_model_config("ViT-H-14")).state_dict())
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_files_are_prepared_and_scored_as_hpsv2_did(
    golden: dict[str, Any], head: HpsHead, pictures: dict[str, Path], name: str
) -> None:
    said = golden["pictures"][name]
    assert sample(normalised(pictures[name])) == pytest.approx(said["pixels"], abs=1e-5)
    assert head(read_picture(pictures[name])[None], [golden["prompt"]]).item() == pytest.approx(
        said["score"], abs=1e-5
    )


def test_the_golden_scores_tell_pictures_apart(golden: dict[str, Any]) -> None:
    assert golden["pictures"].keys() == PICTURES.keys()
    scores = sorted(said["score"] for said in golden["pictures"].values())
    assert min(b - a for a, b in pairwise(scores)) > 1e-4


def test_antialias_shifts_a_score(
    head: HpsHead, checkpoint: Path, pictures: dict[str, Path]
) -> None:
    """By more than parity allows, so that the option must be written down, and is."""
    other = HpsHead(str(checkpoint), architecture=TINY, antialias=False)
    picture = read_picture(pictures["wide"])[None]
    assert (head(picture, [PROMPT]) - other(picture, [PROMPT])).abs().item() > 1e-4
    assert other.provenance()["preprocessing"] != head.provenance()["preprocessing"]
    assert (
        head.provenance()["options"]["antialias"],
        other.provenance()["options"]["antialias"],
    ) == (True, False)


def test_texts_become_the_tokens_of_hpsv2(golden: dict[str, Any]) -> None:
    """Cut at 77 with the end kept, accents and emoji as bytes, entities and capitals undone."""
    tokens = open_clip.get_tokenizer("ViT-H-14")(TEXTS)
    assert [row[: int(row.argmax()) + 1].tolist() for row in tokens] == golden["tokens"]


@pytest.mark.slow
def test_the_real_architecture_takes_what_hpsv2_loads(
    golden: dict[str, Any], tmp_path: Path
) -> None:
    """ViT-H-14, 986 M weights, at its size but without its data: names, shapes, forward and
    backward.

    The checkpoint has hpsv2's names and shapes and is of the meta device, where copies cost
    nothing.
    """
    state = {
        name.replace("#", str(block)): torch.empty(shape, device="meta")
        for name, (count, shape) in golden["shapes"].items()
        for block in range(count)
    }
    assert sum(value.numel() for value in state.values()) == 986_109_441
    file = tmp_path / FILES["v2.1"]
    torch.save({"state_dict": state}, file)
    with torch.device("meta"):
        model = open_clip.create_model("ViT-H-14", load_weights=False, device="meta")
        weights.fill(model, weights.read(file), file)
    clip = OpenClip(model, open_clip.get_tokenizer("ViT-H-14"))
    assert weights.shared(("open_clip", "ViT-H-14", "float32"), str(file), lambda: clip) is clip
    real = HpsHead(str(file), version="v2.1")
    assert real.clip is clip and clip.size == SIZE
    assert clip.mean.tolist() == pytest.approx(MEAN) and clip.std.tolist() == pytest.approx(STD)
    with make_fake({"clip": model}):
        media = torch.rand(2, 3, 512, 768, requires_grad=True)
        scores = real(media, ["a dog", "a cat"])
        [gradient] = torch.autograd.grad(scores.sum(), media)
    assert scores.shape == (2,) and scores.dtype == torch.float32 and gradient.shape == media.shape
    assert real.embed_texts(["a dog"]).shape == (1, 1024)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (40, 60), (300, 200)])
def test_gradients_reach_the_pixels(checkpoint: Path, size: tuple[int, int]) -> None:
    """The directional derivative of the score equals its finite difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        picture = (torch.rand(1, 3, *size) * 0.5 + 0.25).requires_grad_()
    own = HpsHead(str(checkpoint), architecture=TINY)
    own(picture, [PROMPT]).sum().backward()
    assert picture.grad is not None and own.differentiable
    step = picture.grad / picture.grad.norm()
    with torch.no_grad():
        change = own(picture + 0.01 * step, [PROMPT]) - own(picture - 0.01 * step, [PROMPT])
    assert change.item() == pytest.approx(0.02 * picture.grad.norm().item(), rel=0.05)


def test_a_score_is_a_cosine(head: HpsHead) -> None:
    """Neither features' length nor the logit scale has a say: weights that only scale them change
    nothing.
    """
    media, texts = torch.rand(3, 3, 60, 40), ["a", "b", "c"]
    before = head(media, texts)
    scaled = {name: value.clone() for name, value in head.clip.model.state_dict().items()}
    for name in ("visual.proj", "text_projection", "logit_scale"):
        scaled[name] *= 3
    model = open_clip.CLIP(**CONFIG)
    model.load_state_dict(scaled)
    model.visual.image_size, model.visual.preprocess_cfg = SIZE, {"mean": MEAN, "std": STD}
    other = OpenClip(model, open_clip.get_tokenizer("ViT-H-14"))
    found = (other.embed_images(resize_and_pad(media, SIZE)) * other.embed_texts(texts)).sum(-1)
    torch.testing.assert_close(found, before, rtol=0, atol=1e-6)
    assert before.abs().max() <= 1 and head.range == (-1.0, 1.0)


def test_a_score_depends_on_no_batch_mate(head: HpsHead) -> None:
    """B = 1 gives (1,), and each row is what it is alone (1e-6)."""
    media, texts = torch.rand(4, 3, 60, 40), ["a", "b", "a", "c"]
    alone = torch.cat([head(media[i : i + 1], texts[i : i + 1]) for i in range(4)])
    assert head(media[:1], texts[:1]).shape == (1,)
    torch.testing.assert_close(head(media, texts), alone, rtol=0, atol=1e-6)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_kind_of_path_gives_the_same_scores(
    head: HpsHead, checkpoint: Path, tmp_path: Path
) -> None:
    """A folder of the published file, the file, safetensors, an open_clip folder."""
    media = torch.rand(2, 3, 60, 40)
    save_file(tiny_state(), tmp_path / "mine.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(tiny_state(), tmp_path / "folder" / "open_clip_model.safetensors")
    about = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (tmp_path / "folder" / "open_clip_config.json").write_text(json.dumps(about))
    expected = head(media, ["a", "b"])
    for path in (checkpoint / FILES["v2.0"], tmp_path / "mine.safetensors", tmp_path / "folder"):
        found = HpsHead(str(path)) if path.is_dir() else HpsHead(str(path), architecture=TINY)
        torch.testing.assert_close(found(media, ["a", "b"]), expected, rtol=0, atol=0)
        assert found.provenance()["weights_sha256"] == head.provenance()["weights_sha256"]


@pytest.mark.parametrize("version", FILES)
def test_no_path_means_the_published_file_of_the_version(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    """From the hub's cache, where it lies; without it and a network, one line says what is
    wanted.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=rf"xswu/HPSv2: .*OFFLINE is set while {re.escape(FILES[version])}",
    ):
        HpsHead(version=version, architecture=TINY)
    cached = tmp_path / "models--xswu--HPSv2"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("0" * 40) / FILES[version]).write_bytes(
        (checkpoint / FILES["v2.0"]).read_bytes()
    )
    assert HpsHead(version=version, architecture=TINY).provenance()["options"]["version"] == version


def test_half_precision_is_said_and_close(head: HpsHead, checkpoint: Path) -> None:
    half = HpsHead(str(checkpoint), architecture=TINY, dtype="bfloat16")
    assert half.provenance()["dtype"] == "bfloat16"
    media = torch.rand(2, 3, 60, 40)
    scores = half(media, ["a", "b"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(media, ["a", "b"]), rtol=0, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"version": "v3"}, r"hps version: want one of \['v2.0', 'v2.1'\], got 'v3'"),
        ({"antialias": "yes"}, "hps antialias: want true or false"),
        ({"architecture": "ViT-Z-99"}, "hps architecture: want one that open_clip lists"),
        ({"dtype": "int8"}, "dtype: want one of"),
        ({"path": "./nowhere.pt"}, r"./nowhere.pt: no such file; want HPS_v2_compressed.pt"),
        ({"version": "v2.1"}, "no such file; want HPS_v2.1_compressed.pt"),
        ({"architecture": "ViT-B-32"}, "this architecture wants"),
    ],
    ids=str,
)
def test_a_mistake_is_named(checkpoint: Path, options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        HpsHead(**{"path": str(checkpoint), "architecture": TINY, **options})


def test_the_file_of_the_other_version_is_refused(checkpoint: Path) -> None:
    """v2.0 and v2.1 do not compare, so scores must not carry the wrong name."""
    with pytest.raises(
        ValueError, match=r"hps version: v2\.1, but .* is the file of v2.0; want version v2.0"
    ):
        HpsHead(str(checkpoint / FILES["v2.0"]), version="v2.1", architecture=TINY)


def main() -> None:
    import tempfile
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as folder, hpsv2(write_checkpoint(Path(folder))) as package:
        found = ask(package, write_pictures(Path(folder) / "pictures"))
    made_by = {name: version(name) for name in ("torch", "torchvision", "pillow")}
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text(
        json.dumps({"made_by": {"hpsv2": "1.2.0", **made_by}, **found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
