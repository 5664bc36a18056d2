"""ImageReward with random weights by the published names: BLIP written out with plain functions is
the oracle.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)
from transformers import BertTokenizer

from align_gen.reward_heads.heads.image_reward import FILE, ImageReward, Reader, _load

SIZE, PATCH, HEAD = 48, 16, 64  # 9 patches; attention heads are 64 wide, as in the published model
VISION, TEXT, MLP = 192, 128, (1024, 128, 64, 16, 1)
PROMPTS = [
    "a dog",
    "a cat on a mat, with so many letters that the end of it does not fit any more",
    "x y",
    "a dog",
]
Weights = Mapping[str, Tensor]


def published(words: int) -> dict[str, Tensor]:
    """Random weights by the names and in the layout of ImageReward.pt, with the parts that scoring
    does not use.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "blip.vision_proj.weight": (8, VISION),
        "blip.text_proj.bias": (8,),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    eye = "blip.visual_encoder"
    shapes |= {
        f"{eye}.cls_token": (1, 1, VISION),
        f"{eye}.pos_embed": (1, 1 + (SIZE // PATCH) ** 2, VISION),
    }
    shapes |= {
        f"{eye}.patch_embed.proj.weight": (VISION, 3, PATCH, PATCH),
        f"{eye}.patch_embed.proj.bias": (VISION,),
    }
    for i in range(2):
        block = f"{eye}.blocks.{i}"
        norm(f"{block}.norm1", VISION)
        linear(f"{block}.attn.qkv", 3 * VISION, VISION)
        linear(f"{block}.attn.proj", VISION, VISION)
        norm(f"{block}.norm2", VISION)
        linear(f"{block}.mlp.fc1", 200, VISION)
        linear(f"{block}.mlp.fc2", VISION, 200)
    norm(f"{eye}.norm", VISION)

    reader = "blip.text_encoder"
    shapes |= {f"{reader}.embeddings.word_embeddings.weight": (words, TEXT)}
    shapes |= {f"{reader}.embeddings.position_embeddings.weight": (40, TEXT)}
    norm(f"{reader}.embeddings.LayerNorm", TEXT)
    for i in range(3):
        layer = f"{reader}.encoder.layer.{i}"
        for attention, width in (("attention", TEXT), ("crossattention", VISION)):
            linear(f"{layer}.{attention}.self.query", TEXT, TEXT)
            linear(f"{layer}.{attention}.self.key", TEXT, width)
            linear(f"{layer}.{attention}.self.value", TEXT, width)
            linear(f"{layer}.{attention}.output.dense", TEXT, TEXT)
            norm(f"{layer}.{attention}.output.LayerNorm", TEXT)
        linear(f"{layer}.intermediate.dense", 150, TEXT)
        linear(f"{layer}.output.dense", TEXT, 150)
        norm(f"{layer}.output.LayerNorm", TEXT)
    for number, into, out in zip((0, 2, 4, 6, 7), (TEXT, *MLP), MLP, strict=False):
        linear(f"mlp.layers.{number}", out, into)

    state = {
        name: torch.randn(shape) * (1 / shape[-1] ** 0.5 if len(shape) > 1 else 0.2)
        for name, shape in shapes.items()
    }
    state = {
        name: v + 1 if "norm" in name.lower() and name.endswith("weight") else v
        for name, v in state.items()
    }
    return state | {f"{reader}.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageReward.pt, and BERT's kind of tokenizer over letters beside it."""
    folder = tmp_path_factory.mktemp("image_reward")
    letters = [chr(i) for i in range(97, 123)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(published(len(tokens) + 2), folder / FILE)
    return folder


@pytest.fixture(scope="module")
def head(folder: Path) -> ImageReward:
    return ImageReward(str(folder), tokenizer=str(folder))


def media(count: int = 4, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Smooth patches of random colours, in 255ths."""
    patches = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(patches, (height, width), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


# --- the oracle -----------------------------------------------------------------------------------


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / 8) v in heads of 64; (B, N, D)."""
    q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / HEAD**0.5
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def linear(state: Weights, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: Weights, name: str, x: Tensor, epsilon: float) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + epsilon).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def see(state: Weights, pixels: Tensor) -> Tensor:
    """A vision transformer with norms before its parts: (B, 3, 48, 48) -> (B, 10, 192)."""
    eye = "blip.visual_encoder"
    patches = (
        pixels.unfold(2, PATCH, PATCH)
        .unfold(3, PATCH, PATCH)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    x = (
        patches @ state[f"{eye}.patch_embed.proj.weight"].flatten(1).T
        + state[f"{eye}.patch_embed.proj.bias"]
    )
    x = (
        torch.cat([state[f"{eye}.cls_token"].expand(len(x), -1, -1), x], 1)
        + state[f"{eye}.pos_embed"]
    )
    for i in range(2):
        block = f"{eye}.blocks.{i}"
        q, k, v = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, 1e-6)).chunk(
            3, -1
        )
        x = x + linear(state, f"{block}.attn.proj", attend(q, k, v))
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + linear(state, f"{block}.mlp.fc2", hidden)
    return norm(state, f"{eye}.norm", x, 1e-6)


def read(state: Weights, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """BERT with norms after its parts, looking at the picture between attention and layer: first
    place, (B, 128).
    """
    encoder = "blip.text_encoder"
    x = state[f"{encoder}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{encoder}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, f"{encoder}.embeddings.LayerNorm", x, 1e-12)
    for i in range(3):
        layer = f"{encoder}.encoder.layer.{i}"
        for name, other, hidden in (("attention", None, mask), ("crossattention", seen, None)):
            part, source = f"{layer}.{name}", x if other is None else other
            q, k = linear(state, f"{part}.self.query", x), linear(state, f"{part}.self.key", source)
            found = attend(q, k, linear(state, f"{part}.self.value", source), hidden)
            x = norm(
                state,
                f"{part}.output.LayerNorm",
                linear(state, f"{part}.output.dense", found) + x,
                1e-12,
            )
        wide = F.gelu(linear(state, f"{layer}.intermediate.dense", x))
        x = norm(
            state,
            f"{layer}.output.LayerNorm",
            linear(state, f"{layer}.output.dense", wide) + x,
            1e-12,
        )
    return x[:, 0]


def reference(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """Pillow's and torchvision's preprocessing, BLIP, five matrices, (r - mean) / std; all in
    float64.
    """
    state = {name: v.double() for name, v in torch.load(folder / FILE, weights_only=True).items()}
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [
        Resize(SIZE, InterpolationMode.BICUBIC),
        CenterCrop(SIZE),
        ToTensor(),
        Normalize(mean, std),
    ]
    bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pixels = torch.stack([Compose(steps)(Image.fromarray(picture)) for picture in bytes_]).double()
    tokens = BertTokenizer(str(folder / "vocab.txt"))(
        prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    x = read(state, tokens.input_ids, tokens.attention_mask, see(state, pixels))
    for number in (0, 2, 4, 6, 7):
        x = linear(state, f"mlp.layers.{number}", x)
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_equals_blip_written_out(folder: Path, head: ImageReward) -> None:
    """On pictures of the model's size: float32 against float64, to 1e-5 of scores of which the
    spread is about 1.
    """
    expected, found = reference(folder, media(), PROMPTS), head(media(), PROMPTS)
    assert expected.std() > 0.1  # the scores do differ
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60, 101), (101, 60), (48, 51)], ids=str)
def test_other_sizes_are_cropped_as_torchvision_does(
    folder: Path, head: ImageReward, size: tuple[int, int]
) -> None:
    """Pillow rounds to bytes on the way: 2 % of the spread. A picture that is one column further
    moves more.
    """
    expected, found = (
        reference(folder, media(4, *size), PROMPTS),
        head(media(4, *size), PROMPTS).double(),
    )
    tolerance = 0.02 * reference(folder, media(), PROMPTS).std().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    moved = media(4, *size).roll(1, dims=-1 if size[1] > size[0] else -2)
    assert (found - reference(folder, moved, PROMPTS)).abs().max() > tolerance


def test_prompt_and_picture_both_matter(head: ImageReward) -> None:
    same = media(1).expand(4, -1, -1, -1)
    assert head(same, PROMPTS)[:3].std() > 1e-3 and head(media(), ["a dog"] * 4).std() > 1e-3


# --- the head -------------------------------------------------------------------------------------


def test_one_picture_is_a_batch(head: ImageReward) -> None:
    """B = 1 gives (1,), and the score does not depend on batch mates: prompts are padded to 35
    tokens, not to them.
    """
    alone = [head(image[None], [prompt]) for image, prompt in zip(media(), PROMPTS, strict=True)]
    assert alone[0].shape == (1,)
    torch.testing.assert_close(torch.cat(alone), head(media(), PROMPTS), rtol=0, atol=1e-5)


def test_gradients_reach_the_pixels(folder: Path, head: ImageReward) -> None:
    """In float64, from normalised pixels to the raw reward, against finite differences along a
    random direction.
    """
    images = media(1, 60, 52).requires_grad_()
    head(images, ["a dog"]).sum().backward()
    assert head.differentiable and images.grad is not None and images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in head.model.parameters())
    model: Reader = _load(str(folder), str(folder), "float32").double()
    pixels = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: model(x, ["a dog"]), (pixels,), fast_mode=True, atol=1e-6
    )


def test_heads_of_one_file_share_the_weights(folder: Path, head: ImageReward) -> None:
    again = ImageReward(str(folder), tokenizer=str(folder))
    assert again.model is head.model and again.to("cpu") is again
    assert ImageReward(str(folder / FILE), tokenizer=str(folder)).provenance() == head.provenance()


def test_provenance_follows_the_weights(folder: Path, head: ImageReward, tmp_path: Path) -> None:
    first = head.provenance()
    assert len(first["weights_sha256"]) == 64 and first["dtype"] == "float32"
    state = torch.load(folder / FILE, weights_only=True)
    state["mlp.layers.7.bias"] += 1
    torch.save(state, tmp_path / FILE)
    other = ImageReward(str(tmp_path), tokenizer=str(folder))
    assert other.provenance()["weights_sha256"] != first["weights_sha256"]
    found = other(media(), PROMPTS) - head(media(), PROMPTS)
    torch.testing.assert_close(found, torch.full((4,), 1 / 1.0333394966054072), rtol=0, atol=1e-5)


def test_half_precision_is_said_and_close(folder: Path, head: ImageReward) -> None:
    half = ImageReward(str(folder), tokenizer=str(folder), dtype="bfloat16")
    scores = half(media(), PROMPTS)
    assert half.provenance()["dtype"] == "bfloat16" and scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(media(), PROMPTS), rtol=0, atol=0.2)


# --- mistakes -------------------------------------------------------------------------------------

LAYER = "blip.text_encoder.encoder.layer.1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            {f"{LAYER}.output.dense.bias": torch.zeros(3)},
            r"text encoder: encoder.layer.1.output.dense.bias has shape \(3,\)",
        ),
        (
            {"blip.visual_encoder.norm.bias": None},
            "picture encoder: post_layernorm.bias is missing",
        ),
        ({"mlp.layers.4.weight": torch.zeros(1, 1)}, r"mlp: layers.4.weight has shape \(1, 1\)"),
        (
            {"blip.visual_encoder.pos_embed": None},
            "pos_embed is missing; want the weights of ImageReward",
        ),
        (
            {"blip.text_encoder.embeddings.word_embeddings.weight": torch.zeros(70, TEXT)},
            "has 57 tokens.*know 68",
        ),
    ],
    ids=["shape", "missing", "mlp", "another file", "another tokenizer"],
)
def test_weights_of_another_shape_are_named(
    folder: Path, tmp_path: Path, change: dict[str, Tensor | None], pattern: str
) -> None:
    state = torch.load(folder / FILE, weights_only=True) | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / FILE)
    with pytest.raises(ValueError, match=pattern) as error:
        ImageReward(str(tmp_path), tokenizer=str(folder))
    assert "\n" not in str(error.value) and (FILE in str(error.value))


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"mlp.layers.0.bias": Code()}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"ImageReward.pt: is not a plain file of tensors"):
        ImageReward(str(tmp_path), tokenizer=str(folder))
    assert not (tmp_path / "ran").exists()


def test_names_that_the_hub_does_not_give_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^google-bert/bert-base-uncased: .*OFFLINE is set while vocab.txt",
    ) as tokenizer:
        ImageReward(str(folder))
    with pytest.raises(
        ValueError,
        match=r"^zai-org/ImageReward: .*OFFLINE is set while ImageReward.pt",
    ) as model:
        ImageReward(tokenizer=str(folder))
    assert "\n" not in str(tokenizer.value) + str(model.value)


def test_other_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype: want one of .*got 'int8'"):
        ImageReward(str(folder), tokenizer=str(folder), dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^./nowhere: no such file; want vocab.txt"):
        ImageReward(str(folder), tokenizer="./nowhere")


def test_another_prompt_gives_another_score_and_the_head_says_so(head: ImageReward) -> None:
    assert head.reads_prompt
    assert not torch.equal(head(media(1), ["a dog"]), head(media(1), ["two cats"]))
