"""The aesthetic predictor on a tiny CLIP with random weights: open_clip's own pipeline and plain
matrices as oracle.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from align_gen.reward_heads.backbones.linear_layers import linear_layers
from align_gen.reward_heads.heads.aesthetic import FILE, Aesthetic
from tests.tiny.parts import clip_tokenizer

SIZE, WIDTH = 32, 16
NUMBERS = (
    0,
    2,
    4,
    6,
    7,
)  # of the linear layers among the published ones; dropout stands between the first four


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder, with the predictor's weights beside it."""
    folder = tmp_path_factory.mktemp("aesthetic")
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    vision = {"image_size": SIZE, "width": 16, "head_width": 8, "layers": 2, "patch_size": 8}
    text: dict[str, Any] = {
        "context_length": 24,
        "vocab_size": len(tokenizer),
        "width": 16,
        "heads": 2,
        "layers": 1,
    }
    text |= {"hf_tokenizer_name": "tokenizer"}
    model_cfg = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    preprocess |= {"resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**model_cfg)
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
        save_file(
            {name: v.contiguous() for name, v in model.state_dict().items()},
            folder / "open_clip_model.safetensors",
        )
        torch.save(published(WIDTH), folder / FILE)
    return folder


def published(width: int) -> dict[str, Tensor]:
    """Random weights by the published names and shapes, large enough to tell pictures apart."""
    sizes = (width, 1024, 128, 64, 16, 1)
    state = {}
    for number, into, out in zip(NUMBERS, sizes, sizes[1:], strict=False):
        state[f"layers.{number}.weight"] = torch.randn(out, into) * 2 / into**0.5
        state[f"layers.{number}.bias"] = torch.randn(out)
    return state


def head_of(folder: Path, **options: Any) -> Aesthetic:
    return Aesthetic(**{"head": str(folder), "path": str(folder)} | options)


def media(count: int = 4, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Smooth patches of random colours, in 255ths."""
    patches = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(patches, (height, width), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def pictures(images: Tensor) -> list[Image.Image]:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


def reference(folder: Path, images: Tensor) -> Tensor:
    """open_clip's loading and transforms, the unit embedding, then x W^T + b five times."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        x = model.eval().encode_image(
            torch.stack([preprocess(picture) for picture in pictures(images)])
        )
    x = x / x.norm(dim=-1, keepdim=True)
    state = torch.load(folder / FILE, weights_only=True)
    for number in NUMBERS:
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    return x[:, 0]


def test_equals_clip_and_five_matrices(folder: Path) -> None:
    """On pictures of the model's size, to 1e-5 of the scores; dropout is off."""
    expected, head = reference(folder, media()), head_of(folder)
    found = head(media(), [""] * 4)
    assert expected.std() > 0.05  # the scores do differ
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32 and torch.equal(head(media(), [""] * 4), found)


@pytest.mark.parametrize("size", [(40, 77), (77, 40), (32, 35)], ids=str)
def test_other_sizes_are_cropped_as_clip_does(folder: Path, size: tuple[int, int]) -> None:
    """Pillow rounds to bytes on the way: 2 % of the spread of scores. A crop off by one column
    moves them more.
    """
    found, spread = head_of(folder)(media(4, *size), [""] * 4), reference(folder, media()).std()
    torch.testing.assert_close(
        found, reference(folder, media(4, *size)), rtol=0, atol=0.02 * spread.item()
    )
    moved = reference(folder, media(4, *size).roll(1, dims=-1 if size[1] > size[0] else -2))
    assert (found - moved).abs().max() > 0.02 * spread


def test_the_layers_have_the_published_names_and_shapes() -> None:
    """768-1024-128-64-16-1, layers 1, 3 and 5 being dropout: 768*1024 + 1024 + 131200 + 8256 + 1040
    + 17 numbers.
    """
    state = linear_layers(768).state_dict()
    assert {name: v.shape for name, v in state.items()} == {
        name: v.shape for name, v in published(768).items()
    }
    assert sum(v.numel() for v in state.values()) == 787456 + 131200 + 8256 + 1040 + 17


def test_prompts_do_not_matter_and_one_picture_is_a_batch(folder: Path) -> None:
    head = head_of(folder)
    alone = torch.cat([head(image[None], ["x"]) for image in media()])
    assert head(media()[:1], ["x"]).shape == (1,)
    torch.testing.assert_close(alone, head(media(), ["a", "b", "c", "d"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [SIZE, 40])
def test_gradients_reach_the_pixels(folder: Path, size: int) -> None:
    """The directional derivative equals its finite difference (float32, the score being about
    linear at that step).
    """
    head, images = head_of(folder), (media(1, size, size) * 0.8 + 0.1).requires_grad_()
    head(images, [""]).sum().backward()
    assert head.differentiable and images.grad is not None and images.grad.norm() > 0
    step = 0.05 * images.grad / images.grad.norm()
    with torch.no_grad():
        change = head(images + step, [""]) - head(images - step, [""])
    assert change.item() == pytest.approx(2 * 0.05 * images.grad.norm().item(), rel=0.02)
    assert not any(weight.requires_grad for weight in head.layers.parameters())


def test_the_last_layers_are_float64_exact(folder: Path) -> None:
    layers = linear_layers(WIDTH).double()
    assert torch.autograd.gradcheck(
        layers, (torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True),)
    )


def test_provenance_follows_both_weights(folder: Path, tmp_path: Path) -> None:
    first = head_of(folder).provenance()
    assert first == head_of(folder).provenance() and len(first["weights_sha256"]) == 64
    state = torch.load(folder / FILE, weights_only=True)
    state["layers.7.bias"] += 1
    save_file(state, tmp_path / "other.safetensors")
    other = head_of(folder, head=str(tmp_path / "other.safetensors"))
    assert other.provenance()["weights_sha256"] != first["weights_sha256"]
    torch.testing.assert_close(other(media(), [""] * 4), head_of(folder)(media(), [""] * 4) + 1)
    assert head_of(folder).clip is other.clip and other.to("cpu") is other  # CLIP is loaded once
    assert head_of(folder, dtype="bfloat16").provenance()["dtype"] == "bfloat16"


def test_wrong_weights_are_named(folder: Path, tmp_path: Path) -> None:
    torch.save(published(768), tmp_path / FILE)
    with pytest.raises(
        ValueError, match=r"layers.0.weight has shape \(1024, 768\).*wants \(1024, 16\)"
    ) as shape:
        head_of(folder, head=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"./nowhere: no such file; want aesthetic-model.pth"
    ) as missing:
        head_of(folder, head="./nowhere")
    assert "\n" not in str(shape.value) + str(missing.value)


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"layers.0.weight": Code()}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"aesthetic-model.pth: is not a plain file of tensors"):
        head_of(folder, head=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_name_that_the_hub_does_not_give_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The small file is asked for first, so that nobody waits for CLIP in vain."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^trl-lib/ddpo-aesthetic-predictor: .*OFFLINE is set while aesthetic-model.pth",
    ) as e:
        Aesthetic()
    assert "\n" not in str(e.value)
