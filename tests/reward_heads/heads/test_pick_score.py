"""PickScore on a tiny CLIP with random weights: transformers' own processor and model are the
oracle.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, SiglipConfig

from align_gen.reward_heads.backbones.preprocess import normalise, resize, shortest_side
from align_gen.reward_heads.backbones.text_cache import TextCache
from align_gen.reward_heads.backbones.transformers_model import DualEncoder
from align_gen.reward_heads.heads.pick_score import PickScore
from tests.tiny.parts import clip_tokenizer

SIZE = 32
PROMPTS = ["a dog", "a cat on a mat, in a long sentence that is cut", "a thing", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As save_pretrained writes it, with the processor; read only."""
    folder = tmp_path_factory.mktemp("pick_score") / "model"
    tokenizer = clip_tokenizer()
    layers: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    layers |= {"num_attention_heads": 2}
    ends = {
        "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
        "pad_token_id": len(tokenizer) - 1,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        **layers,
        **ends,
    }
    vision = {"image_size": SIZE, "patch_size": 8, **layers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
        for (
            weight
        ) in model.parameters():  # the initialisation is so small that all pictures look alike
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def media(count: int = 4, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Smooth patches of random colours, in 255ths."""
    patches = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(patches, (height, width), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def pictures(images: Tensor) -> list[Image.Image]:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


# --- the oracle -----------------------------------------------------------------------------------


def test_equals_transformers_processor_and_model(folder: Path) -> None:
    """Its logits are exp(scale) cos of unit vectors; on pictures of the model's size, to 1e-5 of
    scores around 10.
    """
    model, processor = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPProcessor.from_pretrained(folder),
    )
    text = {"padding": True, "truncation": True, "max_length": 24}
    inputs = processor(text=PROMPTS, images=pictures(media()), return_tensors="pt", **text)
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.diagonal()
    found = PickScore(str(folder))(media(), PROMPTS)
    assert expected.std() > 0.05  # the scores do differ
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [(48, 48), (40, 77), (77, 40), (20, 44), (32, 35), (35, 32)], ids=str
)
def test_other_sizes_are_preprocessed_as_the_processor_does(
    folder: Path, size: tuple[int, int]
) -> None:
    """The processor rounds to bytes on the way, once a direction: within 1.5 levels of ours, which
    does not.
    """
    head = PickScore(str(folder))
    images = media(2, *size)
    processor = CLIPProcessor.from_pretrained(folder).image_processor
    theirs = processor(pictures(images), return_tensors="pt")["pixel_values"]
    theirs = theirs * torch.tensor(processor.image_std).view(3, 1, 1)
    theirs = theirs + torch.tensor(processor.image_mean).view(3, 1, 1)
    ours = shortest_side(images, SIZE)
    assert ours.shape == theirs.shape == (2, 3, SIZE, SIZE)
    assert (ours - theirs).abs().max() <= 1.5 / 255
    centred = normalise(ours, processor.image_mean, processor.image_std)
    encoded = (head.encoder.embed_images(centred) * head.encoder.embed_texts(["a", "b"])).sum(-1)
    torch.testing.assert_close(
        head(images, ["a", "b"]), head.encoder.model.logit_scale.exp() * encoded
    )


@pytest.mark.parametrize(("offset", "first"), [(int, 1), (round, 2)])
def test_an_odd_crop_starts_where_the_library_starts(
    offset: Callable[[float], int], first: int
) -> None:
    """35 - 32 = 3 columns go; 3 / 2 is 1 for transformers and 2 for torchvision. Nothing is
    resized.
    """
    columns = torch.arange(35.0).expand(1, 3, 32, 35) / 35
    torch.testing.assert_close(
        shortest_side(columns, 32, offset)[0, 0, 0] * 35, torch.arange(first, first + 32.0)
    )


def test_overshoot_is_cut_as_bytes_cut_it() -> None:
    """Bicubic between black and white leaves [0, 1]; the picture does not."""
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    plain = F.interpolate(edge, (16, 16), mode="bicubic", antialias=True)
    assert plain.min() < 0 and plain.max() > 1
    torch.testing.assert_close(resize(edge, 16, 16), plain.clamp(0, 1))


def test_the_right_size_is_not_touched() -> None:
    images = media()
    assert torch.equal(shortest_side(images, SIZE), images) and resize(images, SIZE, SIZE) is images


# --- the head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(SIZE, SIZE), (40, 44)])
def test_gradients_reach_the_pixels(folder: Path, size: tuple[int, int]) -> None:
    """In float64, from pixels to the unit vector, against finite differences along a random
    direction.
    """
    model = CLIPModel.from_pretrained(folder).double().requires_grad_(False).eval()
    encoder = DualEncoder(model, lambda texts: {})
    images = (media(1, *size).double() * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: encoder.embed_images(shortest_side(x, SIZE)), (images,), fast_mode=True, atol=1e-6
    )
    head = PickScore(str(folder))
    single = media(1, *size).requires_grad_()
    head(single, ["a dog"]).sum().backward()
    assert head.differentiable and single.grad is not None and single.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in head.encoder.model.parameters())


def test_one_picture_is_a_batch(folder: Path) -> None:
    """B = 1 gives (1,); neither batch mates nor the prompts beside it, which set the padding,
    change a score.
    """
    head = PickScore(str(folder))
    alone = []
    for image, prompt in zip(media(), PROMPTS, strict=True):
        head.encoder._texts = TextCache()
        alone.append(head(image[None], [prompt]))
    assert alone[0].shape == (1,)
    head.encoder._texts = TextCache()
    torch.testing.assert_close(torch.cat(alone), head(media(), PROMPTS), rtol=0, atol=1e-5)


def test_scores_lie_in_the_range_that_the_scale_gives(folder: Path) -> None:
    """|cos| <= 1, so the range is exp(logit_scale) either way."""
    head = PickScore(str(folder))
    scale = load_file(folder / "model.safetensors")["logit_scale"].exp().item()
    assert list(head.range) == pytest.approx([-scale, scale])
    assert head(media(), PROMPTS).abs().max() <= scale


def test_each_distinct_prompt_is_encoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, encoded = PickScore(str(folder)), []
    head.encoder._texts = TextCache()
    real = head.encoder.model.get_text_features

    def count(**inputs: Tensor) -> Any:
        encoded.append(len(inputs["input_ids"]))
        return real(**inputs)

    monkeypatch.setattr(head.encoder.model, "get_text_features", count)
    first = head(media(), ["a", "b", "a", "a"])
    again = head(media(), ["b", "a", "c", "a"])
    assert encoded == [2, 1]
    torch.testing.assert_close(first[3], again[3])


def test_heads_of_one_folder_share_the_weights(folder: Path) -> None:
    first, second = PickScore(str(folder)), PickScore(str(folder))
    assert first.encoder is second.encoder and first.to("cpu") is first
    assert PickScore(str(folder), dtype="bfloat16").encoder is not first.encoder


def test_half_precision_is_said_and_close(folder: Path) -> None:
    half, full = PickScore(str(folder), dtype="bfloat16"), PickScore(str(folder))
    assert half.provenance()["dtype"] == "bfloat16"
    scores = half(media(), PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, full(media(), PROMPTS), rtol=0, atol=0.3)


def test_provenance_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    """One number of one weight moved by one unit in the last place is another model; a copy is
    not.
    """
    first = PickScore(str(folder)).provenance()
    assert len(first["weights_sha256"]) == 64 and first["dtype"] == "float32"
    assert first["preprocessing"] == "pick_score-1"
    other = copy(folder, tmp_path)
    assert PickScore(str(other)).provenance() == first
    state = load_file(other / "model.safetensors")
    state["visual_projection.weight"][0, 0] = state["visual_projection.weight"][0, 0].nextafter(
        torch.tensor(9.0)
    )
    save_file(state, other / "model.safetensors")
    os.utime(other / "model.safetensors", ns=(1, 2**62))  # the clock may be too coarse to see it
    assert PickScore(str(other)).provenance()["weights_sha256"] != first["weights_sha256"]


def test_an_old_pickle_of_tensors_gives_the_same_scores(folder: Path, tmp_path: Path) -> None:
    """pytorch_model.bin, with the position numbers that transformers saved until 4.31."""
    old = copy(folder, tmp_path)
    state = load_file(old / "model.safetensors")
    state |= {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    state |= {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    torch.save(state, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    torch.testing.assert_close(
        PickScore(str(old))(media(), PROMPTS), PickScore(str(folder))(media(), PROMPTS)
    )


# --- mistakes -------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


class Code:
    """What a pickle runs when it is loaded carelessly."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    bad = copy(folder, tmp_path)
    (bad / "model.safetensors").unlink()
    torch.save({"logit_scale": Code(tmp_path / "ran")}, bad / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: is not a plain file of tensors"
    ) as error:
        PickScore(str(bad))
    assert one_line(error) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            lambda state: state.update({"logit_scale": torch.zeros(2)}),
            r"copy: logit_scale has shape \(2,\)",
        ),
        (
            lambda state: state.pop("text_projection.weight"),
            r"copy: text_projection.weight is missing",
        ),
        (
            lambda state: state.update({"extra": torch.zeros(1)}),
            r"copy: extra has shape \(1,\).*none of that name",
        ),
    ],
    ids=["shape", "missing", "left over"],
)
def test_weights_of_another_architecture_are_named(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], pattern: str
) -> None:
    bad = copy(folder, tmp_path)
    state = load_file(bad / "model.safetensors")
    change(state)
    save_file(state, bad / "model.safetensors")
    with pytest.raises(ValueError, match=pattern) as error:
        PickScore(str(bad))
    assert one_line(error)


def test_a_name_that_the_hub_does_not_give_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^nobody/nothing: .*OFFLINE is set while config.json",
    ) as error:
        PickScore("nobody/nothing")
    assert one_line(error)


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("config.json", r"path .*copy: want a folder of transformers with its config.json"),
        ("model.safetensors", r"copy: no such file; want model.safetensors"),
        ("tokenizer*", r"copy: its tokenizer has 2 tokens, the weights know 190"),
    ],
)
def test_what_a_folder_lacks_is_named(
    folder: Path, tmp_path: Path, file: str, pattern: str
) -> None:
    """Never a model of random weights, nor the empty tokenizer that transformers makes up."""
    bad = copy(folder, tmp_path)
    for lacking in bad.glob(file):
        lacking.unlink()
    with pytest.raises(ValueError, match=pattern) as error:
        PickScore(str(bad))
    assert one_line(error)
    if file == "tokenizer*":
        found = PickScore(str(bad), tokenizer=str(folder))(media(), PROMPTS)
        torch.testing.assert_close(found, PickScore(str(folder))(media(), PROMPTS))


def test_other_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    SiglipConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="want a clip model, it is siglip"):
        PickScore(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"path ./nowhere: no such folder; want one of transformers, or a hub name"
    ):
        PickScore("./nowhere")
    with pytest.raises(ValueError, match=r"dtype: want one of .*got 'int8'"):
        PickScore(str(folder), dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images: want float \(B, 3, H, W\)"):
        PickScore(str(folder))(torch.zeros(3, SIZE, SIZE), ["a"])


def test_another_prompt_gives_another_score_and_the_head_says_so(folder: Path) -> None:
    head = PickScore(str(folder))
    assert head.reads_prompt
    assert not torch.equal(head(media(1), ["a dog"]), head(media(1), ["two cats"]))
