"""``check`` passes on every family, and says so when an adapter is wrong in one constant."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import bundled, pipelines
from align_gen.check.laws import check, own_sampling
from align_gen.check.subject import Subject
from align_gen.pipelines import LoraOptions
from align_gen.pipelines.pretrained import Pretrained
from align_gen.pipelines.prompt_cache import PromptCache
from align_gen.pipelines.schedules import ddim_process
from tests.tiny import failed, subject


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji-sd", "emoji-flow", "emoji-video"])
def test_a_bundled_model_passes_and_denoises(name: str) -> None:
    found = check(Subject.of(pipelines.load(bundled.model_path(name))))
    assert not failed(found)
    assert any(finding.name.startswith("denoises") for finding in found)


@pytest.mark.slow
def test_the_model_is_left_as_it_was() -> None:
    """Weights, pipeline, scheduler and adapters: the same after as before."""
    one = subject("sd")
    before = {key: value.clone() for key, value in one.model.pipeline.unet.state_dict().items()}
    scheduler = one.model.pipeline.scheduler
    flags = [parameter.requires_grad for parameter in one.model.pipeline.text_encoder.parameters()]
    check(one, untrained=True)
    assert flags == [
        parameter.requires_grad for parameter in one.model.pipeline.text_encoder.parameters()
    ]
    after = one.model.pipeline.unet.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    assert one.model.pipeline.scheduler is scheduler


# --- a wrong adapter is caught --------------------------------------------------------------------


def scaled(value: float, shift: float = 0.0) -> Callable[[Pretrained], None]:
    """Raw latents times ``value``, and moved by ``shift``."""

    def change(model: Pretrained) -> None:
        right = model.latent_statistics
        model.latent_statistics = lambda: (right()[0] + shift, right()[1] * value)  # type: ignore[method-assign]

    return change


def later(step: float) -> Callable[[Pretrained], None]:
    """The network is given another time."""

    def change(model: Pretrained) -> None:
        right = model.denoise
        model.denoise = lambda x, t, tensors: right(x, t + step, tensors)  # type: ignore[method-assign]

    return change


def other_prediction(model: Pretrained) -> None:
    object.__setattr__(model.process, "prediction", "v_prediction")


def other_packing(model: Pretrained) -> None:
    def packed(x: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
        return (
            x.view(batch, channels, height // 2, 2, width // 2, 2)
            .permute(0, 2, 4, 3, 5, 1)
            .flatten(3)
            .flatten(1, 2)
        )

    right = model.denoise

    def denoise(x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        kept, model.pipeline._pack_latents = model.pipeline._pack_latents, packed
        try:
            return right(x, t, tensors)
        finally:
            model.pipeline._pack_latents = kept

    model.denoise = denoise  # type: ignore[method-assign]


def no_embedded_guidance(model: Pretrained) -> None:
    right = model.denoise
    model.denoise = lambda x, t, tensors: right(  # type: ignore[method-assign]
        x, t, {**tensors, "guidance": torch.ones_like(tensors["guidance"])}
    )


def wrong_sizes(model: Pretrained) -> None:
    right = model.inputs
    model.inputs = lambda *args, **more: {  # type: ignore[method-assign]
        name: value.flip(-1) + 8 if name == "time_ids" else value
        for name, value in right(*args, **more).items()
    }


def no_second_picture(model: Pretrained) -> None:
    """Every token has a position in the picture to be made."""
    right = model.sequence  # type: ignore[attr-defined]
    model.sequence = lambda x, tensors: (  # type: ignore[attr-defined]
        right(x, tensors)[0],
        right(x, tensors)[1] * torch.tensor([0.0, 1.0, 1.0]),
    )


def plain_guidance(model: Pretrained) -> None:
    model.guided = partial(Pretrained.guided, model)  # type: ignore[method-assign]


def padding_read(model: Pretrained) -> None:
    """A text is taken to be as wide as its tensor."""
    right = model.denoise

    def denoise(x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        mask = torch.ones_like(tensors["prompt_embeds_mask"])
        return right(x, t, {**tensors, "prompt_embeds_mask": mask})

    model.max_sequence_length = 96  # type: ignore[attr-defined] # within the tiny networks' positions
    model.denoise = denoise  # type: ignore[method-assign]


def frames_reversed(model: Pretrained) -> None:
    right = model.decode
    model.decode = lambda latents, frames=None: right(latents, frames).flip(1)  # type: ignore[method-assign]


def backwards(model: Pretrained) -> None:
    right = model.denoise
    model.denoise = lambda x, t, tensors: right(x, 1 - t, tensors)  # type: ignore[method-assign]


def one_template(model: Pretrained) -> None:
    """Negative texts are encoded as prompts are."""
    model.encode_negatives = model.encode_texts  # type: ignore[method-assign]


def altered(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Pretrained], None]:
    """The network is given another tensor under a name."""

    def mutate(model: Pretrained) -> None:
        right = model.denoise
        model.denoise = lambda x, t, tensors: right(  # type: ignore[method-assign]
            x, t, {**tensors, name: change(tensors[name])}
        )

    return mutate


def no_snr_shift(model: Pretrained) -> None:
    scheduler = model.pipeline.scheduler
    model.process = ddim_process(type(scheduler).from_config(scheduler.config, snr_shift_scale=1.0))


def padded_behind(model: Pretrained) -> None:
    right = model.decode
    model.decode = lambda latents, frames=None: right(latents.roll(1, 2), frames)  # type: ignore[method-assign]


def positions_by_latents(model: Any) -> None:
    """Of frames and pixels without their strides."""
    right = model.denoise

    def denoise(x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        kept, model.stride = model.stride, (1, 1)
        try:
            return right(x, t, tensors)
        finally:
            model.stride = kept

    model.denoise = denoise


def no_frame_mask(image_latents: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(image_latents[:, :4]), image_latents[:, 4:]], 1)


MUTATIONS = [
    ("sd", scaled(1.01)),
    ("sd", later(1)),
    ("sd", other_prediction),
    ("sdxl", wrong_sizes),
    ("sdxl", scaled(1.01)),
    ("sd3", scaled(1.0, shift=0.01)),
    ("sd3", later(0.01)),
    ("flux", other_packing),
    ("flux", no_embedded_guidance),
    ("flux", scaled(1.0, shift=0.01)),
    ("flux-kontext", no_second_picture),
    ("flux-kontext", other_packing),
    ("qwen-image", other_packing),
    ("qwen-image", plain_guidance),
    ("qwen-image", padding_read),
    ("qwen-image", scaled(1.0, shift=0.01)),
    ("z-image", later(0.01)),
    ("z-image", padding_read),
    ("z-image", scaled(1.01)),
    ("wan", scaled(1.01)),
    ("wan", later(0.01)),
    ("wan-2.2", frames_reversed),
    ("wan-image-2.1", altered("image_embeds", torch.zeros_like)),
    ("wan-image-2.1", scaled(1.01)),
    ("wan-image-2.2", altered("image_latents", no_frame_mask)),
    ("wan-image-2.2-ti2v", altered("image_latents", lambda latents: 0.99 * latents)),
    ("cogvideox", scaled(1.01)),
    ("cogvideox", later(1)),
    ("cogvideox-2b", no_snr_shift),
    ("cogvideox-1.5", padded_behind),
    ("ltx", positions_by_latents),
    ("ltx", altered("prompt_attention_mask", torch.ones_like)),
    ("ltx-0.9.5", scaled(1.0, shift=0.01)),
    ("hunyuan-video", no_embedded_guidance),
    ("hunyuan-video", altered("prompt_attention_mask", torch.ones_like)),
    ("hunyuan-video", scaled(1.01)),
    ("hunyuan-video-undistilled", later(0.01)),
    ("animatediff", frames_reversed),
    ("animatediff", later(1)),
    ("modelscope", scaled(1.01)),
    ("modelscope", frames_reversed),
    ("instruct-pix2pix", later(1)),
    ("instruct-pix2pix", scaled(1.01)),
    ("controlnet", later(1)),
    ("controlnet-xl", wrong_sizes),
    ("pixart-sigma", later(1)),
    ("pixart-sigma", scaled(1.01)),
    ("pixart-sigma", altered("prompt_attention_mask", torch.ones_like)),
    ("sana", later(0.001)),
    ("sana", scaled(1.01)),
    ("sana", one_template),
    ("lumina-2", backwards),
    ("lumina-2", scaled(1.0, shift=0.01)),
    ("lumina-2", altered("prompt_attention_mask", torch.ones_like)),
    ("lumina-2", plain_guidance),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mutation"), MUTATIONS)
def test_a_wrong_adapter_is_caught(name: str, mutation: Callable[[Pretrained], None]) -> None:
    """By the law that compares its pictures with diffusers' own; the others need not run."""
    one = subject(name)
    mutation(one.model)
    assert "eta 0 = diffusers" in " ".join(failed(list(own_sampling(one))))


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_wrong_prediction_type_in_the_files_does_not_denoise(prediction: str) -> None:
    """diffusers reads the same wrong file, so only the trained network can tell."""
    pipeline = pipelines.load(bundled.model_path("emoji-sd")).pipeline
    pipeline.scheduler.register_to_config(prediction_type=prediction)
    names = failed(check(Subject.of(pipelines.load(pipeline))))
    assert names and all(name.startswith("denoises") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_latent_scale_in_the_files_does_not_denoise(factor: float) -> None:
    """The model's own samples cannot show it: only real pictures do."""
    pipeline = pipelines.load(bundled.model_path("emoji-sd")).pipeline
    pipeline.vae.register_to_config(scaling_factor=factor * pipeline.vae.config.scaling_factor)
    names = failed(check(Subject.of(pipelines.load(pipeline))))
    assert names and all(name.startswith("denoises real pictures") for name in names)


def test_a_model_with_a_lora_is_not_checked_and_keeps_it() -> None:
    one = subject("sd")
    one.model.train_lora(LoraOptions(rank=2))
    with pytest.raises(ValueError, match="a LoRA is loaded"):
        Subject.of(one.model, height=16, width=16)
    assert one.model.parameters()


@pytest.mark.slow
def test_prompts_are_encoded_anew_though_the_disk_has_them(tmp_path: Path) -> None:
    """An encoder whose rows depend on their batch mates is caught: the cache on disk is not
    asked.
    """
    one = subject("sd")
    one.model.prompt_cache = PromptCache(tmp_path)
    right = one.model.encode_texts
    one.model.encode_texts = lambda texts: {  # type: ignore[method-assign]
        name: value + len(texts) for name, value in right(texts).items()
    }
    assert any(
        name.startswith("prompts cached = fresh") for name in failed(check(one, untrained=True))
    )
    assert one.model.prompt_cache is not None


@pytest.mark.slow
def test_a_law_that_raises_is_a_finding() -> None:
    one = subject("sd")

    def broken(*args: Any) -> Any:
        raise RuntimeError("no such\nlayer")

    one.model.denoise = broken  # type: ignore[assignment]
    (finding,) = [finding for finding in check(one, untrained=True) if finding.name == "replay"]
    assert not finding.passed and finding.figure == "RuntimeError: no such layer"
