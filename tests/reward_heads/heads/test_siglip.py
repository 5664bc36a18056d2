"""SigLIP on a tiny model with random weights: transformers' own processor and model are the
oracle.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    GemmaTokenizer,
    Siglip2Config,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from align_gen.reward_heads.backbones.text_cache import TextCache
from align_gen.reward_heads.heads.siglip import SiglipHead

SIZE, TOKENS = 32, 12
PROMPTS = ["a dog", "A Cat on a Mat, which is cut", "a thing", "a dog"]
PADDING: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": TOKENS}


def write_siglip(folder: Path, resample: int = 2) -> Path:
    """As save_pretrained writes it, with SigLIP 2's kind of tokenizer over small letters, and its
    processor.
    """
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "\u2581",
        *(chr(i) for i in range(33, 127) if not chr(i).isupper()),
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    ends = {"add_bos_token": False, "add_eos_token": True, "mask_token": None}
    tokenizer = GemmaTokenizer(
        vocab=vocabulary, merges=[], padding_side="left", **ends
    )  # which the head overrides
    layers: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    layers |= {"num_attention_heads": 2}
    numbers = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "projection_size": 16,
        **layers,
        **numbers,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(
            SiglipConfig(
                text_config=text, vision_config={"image_size": SIZE, "patch_size": 8, **layers}
            )
        )
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        model.logit_scale.data.fill_(1.5)
        model.logit_bias.data.fill_(-0.7)
    model.save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, resample=resample)
    SiglipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("siglip") / "model")


def media(count: int = 4, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Smooth patches of random colours, in 255ths."""
    patches = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(patches, (height, width), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def pictures(images: Tensor) -> list[Image.Image]:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


# --- the oracle -----------------------------------------------------------------------------------


def oracle(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """The logits of transformers' model, for prompts as SigLIP was trained: small letters, right
    padding, no mask.
    """
    model, processor = (
        SiglipModel.from_pretrained(folder).eval(),
        SiglipProcessor.from_pretrained(folder),
    )
    processor.tokenizer.padding_side = "right"
    inputs = processor(
        text=[p.lower() for p in prompts], images=pictures(images), return_tensors="pt", **PADDING
    )
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]
        ).logits_per_image
    return logits.diagonal()


def test_equals_transformers_processor_and_model(folder: Path) -> None:
    """On pictures of the model's size, to 1e-5."""
    expected = oracle(folder, media(), PROMPTS)
    found = SiglipHead(str(folder))(media(), PROMPTS)
    assert expected.std() > 0.05  # the scores do differ
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (4,)


def test_the_logit_is_scale_times_cosine_plus_bias_and_the_probability_its_sigmoid(
    folder: Path,
) -> None:
    """exp(1.5) cos - 0.7, with the cosine of the unit vectors; 1 / (1 + exp(-logit))."""
    head = SiglipHead(str(folder))
    image = head.encoder.embed_images(head.encoder.preprocess(media()))
    text = head.encoder.embed_texts([prompt.lower() for prompt in PROMPTS])
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))
    logit = 4.4816890703 * (image * text).sum(-1) - 0.7
    torch.testing.assert_close(head(media(), PROMPTS), logit)
    probability = SiglipHead(str(folder), output="probability")
    torch.testing.assert_close(probability(media(), PROMPTS), 1 / (1 + (-logit).exp()))
    assert probability.range == (0.0, 1.0)
    assert list(head.range) == pytest.approx([-0.7 - 4.4816890703, -0.7 + 4.4816890703])


@pytest.mark.slow
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(48, 48), (20, 44)], ids=str)
def test_other_sizes_are_squashed_as_the_processor_does(
    tmp_path: Path, resample: int, size: tuple[int, int]
) -> None:
    """Bilinear (2) or bicubic (3), as its file says. The processor rounds to bytes on the way:
    within 1.5 levels.
    """
    folder = write_siglip(tmp_path, resample)
    theirs = SiglipProcessor.from_pretrained(folder).image_processor(
        pictures(media(2, *size)), return_tensors="pt"
    )
    ours = SiglipHead(str(folder)).encoder.preprocess(media(2, *size))
    assert ours.shape == theirs["pixel_values"].shape
    assert ((ours - theirs["pixel_values"]) * 0.5).abs().max() <= 1.5 / 255
    other = SiglipHead(str(write_siglip(tmp_path / "other", 5 - resample))).encoder.preprocess(
        media(2, *size)
    )
    assert ((ours - other) * 0.5).abs().max() > 1.5 / 255  # the modes do differ


def test_capitals_do_not_matter(folder: Path) -> None:
    head = SiglipHead(str(folder))
    assert torch.equal(head(media(), ["A DOG"] * 4), head(media(), ["a dog"] * 4))
    assert not torch.allclose(head(media(), ["a dog"] * 4), head(media(), ["a cat"] * 4))


def test_padding_stands_on_the_right_and_is_not_masked(folder: Path) -> None:
    """The summary is read at the last place, which is padding: "a" is [a, eos, pad ...] to the
    model's length.
    """
    inputs = SiglipHead(str(folder)).encoder.tokenize(["a"])
    assert set(inputs) == {"input_ids"} and inputs["input_ids"].shape == (1, TOKENS)
    assert inputs["input_ids"][0, 1:].tolist() == [1] + [0] * (TOKENS - 2)


# --- the head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(SIZE, SIZE), (40, 44)])
def test_gradients_reach_the_pixels(folder: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """In float64, from pixels to the unit vector, against finite differences along a random
    direction.
    """
    encoder = SiglipHead(
        str(shutil.copytree(folder, tmp_path / "copy"))
    ).encoder  # not the one that others share
    encoder.model.double()
    images = (media(1, *size).double() * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: encoder.embed_images(encoder.preprocess(x)), (images,), fast_mode=True, atol=1e-6
    )
    head, single = SiglipHead(str(folder), output="probability"), media(1, *size).requires_grad_()
    head(single, ["a dog"]).sum().backward()
    assert head.differentiable and single.grad is not None and single.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in head.encoder.model.parameters())


def test_one_picture_is_a_batch(folder: Path) -> None:
    """B = 1 gives (1,), and the score does not depend on batch mates."""
    head = SiglipHead(str(folder))
    alone = [head(image[None], [prompt]) for image, prompt in zip(media(), PROMPTS, strict=True)]
    assert alone[0].shape == (1,)
    torch.testing.assert_close(torch.cat(alone), head(media(), PROMPTS), rtol=0, atol=1e-5)


def test_heads_of_one_folder_share_weights_and_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logit, probability = SiglipHead(str(folder)), SiglipHead(str(folder), output="probability")
    assert logit.encoder is probability.encoder and logit.to("cpu") is logit
    logit.encoder._texts = TextCache()
    encoded = []
    real = logit.encoder.model.get_text_features

    def count(**inputs: Tensor) -> Any:
        encoded.append(len(inputs["input_ids"]))
        return real(**inputs)

    monkeypatch.setattr(logit.encoder.model, "get_text_features", count)
    logit(media(), ["a", "A", "b", "a"])
    probability(media(), ["b", "b", "a", "c"])
    assert encoded == [2, 1]


def test_provenance_follows_weights_and_options(folder: Path, tmp_path: Path) -> None:
    first = SiglipHead(str(folder)).provenance()
    assert len(first["weights_sha256"]) == 64 and first["dtype"] == "float32"
    assert first["preprocessing"] == "siglip-1-bilinear"
    assert first["options"] != SiglipHead(str(folder), output="probability").provenance()["options"]
    assert SiglipHead(str(folder), dtype="bfloat16").provenance()["dtype"] == "bfloat16"
    other = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = load_file(other / "model.safetensors")
    state["logit_bias"] += 1
    save_file(state, other / "model.safetensors")
    assert SiglipHead(str(other)).provenance()["weights_sha256"] != first["weights_sha256"]


def test_half_precision_is_close(folder: Path) -> None:
    scores = SiglipHead(str(folder), dtype="bfloat16")(media(), PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, SiglipHead(str(folder))(media(), PROMPTS), rtol=0, atol=0.1)


# --- mistakes -------------------------------------------------------------------------------------


def test_a_wrong_shape_and_a_missing_file_are_one_line(folder: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = load_file(bad / "model.safetensors")
    save_file(state | {"logit_bias": torch.zeros(3)}, bad / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"copy: logit_bias has shape \(3,\); this architecture wants \(1,\)"
    ) as shape:
        SiglipHead(str(bad))
    save_file(state, bad / "model.safetensors")
    for file in (*bad.glob("preprocessor*"), *bad.glob("processor*")):
        file.unlink()
    with pytest.raises(
        ValueError, match="copy: want a folder of transformers with its preprocessor"
    ) as missing:
        SiglipHead(str(bad))
    assert "\n" not in str(shape.value) + str(missing.value)


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    bad = Path(shutil.copytree(folder, tmp_path / "copy"))
    (bad / "model.safetensors").unlink()
    torch.save({"logit_scale": Code()}, bad / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: is not a plain file of tensors"):
        SiglipHead(str(bad))
    assert not (tmp_path / "ran").exists()


def test_a_name_that_the_hub_does_not_give_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^google/siglip2-base-patch16-224: .*OFFLINE is set while config.json",
    ) as error:
        SiglipHead()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("config", "kind"), [(CLIPConfig, "clip"), (Siglip2Config, "siglip2")])
def test_another_architecture_is_named(tmp_path: Path, config: Any, kind: str) -> None:
    """A SigLIP 2 of variable resolution calls itself siglip2; those of fixed resolution are
    siglip.
    """
    config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"want a siglip model, it is {kind}$"):
        SiglipHead(str(tmp_path))


def test_a_wrong_option_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="siglip output: want logit or probability, got 'score'"):
        SiglipHead(str(folder), output="score")  # type: ignore[arg-type]


def test_another_prompt_gives_another_score_and_the_head_says_so(folder: Path) -> None:
    head = SiglipHead(str(folder))
    assert head.reads_prompt
    assert not torch.equal(head(media(1), ["a dog"]), head(media(1), ["two cats"]))
