"""The Stable Diffusion adapter: texts, sizes, guidance, schedules and pictures."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Generator

from align_gen.pipelines import rollout, sample
from align_gen.pipelines.families.stable_diffusion import StableDiffusion
from tests.tiny.drawing import LATENTS, PROMPTS, diffusers_pictures, pictures
from tests.tiny.parts import SCHEDULE, TOKENS
from tests.tiny.stable_diffusion import stable_diffusion

Maker = Callable[..., Any]
SAYING_IT = (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.tokenization_utils_base",
)


# -- texts


def test_texts_are_encoded_as_the_pipeline_does(tiny_model: Maker) -> None:
    """Two rows at once and one after the other; the negative text defaults to the empty one."""
    model = tiny_model()
    found = model.encode_prompts(PROMPTS).tensors
    wanted, against = model.pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.allclose(found["prompt_embeds"], wanted, atol=1e-6)
    assert torch.allclose(found["negative_prompt_embeds"], against, atol=1e-6)
    _, blue = model.pipeline.encode_prompt(PROMPTS, "cpu", 1, True, ["blue", "blue"])
    named = model.encode_prompts(PROMPTS, "blue").tensors["negative_prompt_embeds"]
    assert torch.allclose(named, blue, atol=1e-6)
    assert not torch.allclose(named, against, atol=1e-2)
    each = model.encode_prompts(PROMPTS, ["blue", ""]).tensors["negative_prompt_embeds"]
    assert torch.equal(each[0], named[0])
    assert torch.equal(each[1], found["negative_prompt_embeds"][1])
    assert not found["prompt_embeds"].requires_grad


def test_a_text_is_encoded_once(tiny_model: Maker) -> None:
    """The texts a, b and the empty negative: three rows go through the encoder, though twelve are
    asked for.
    """
    model = tiny_model()
    rows: list[int] = []
    model.pipeline.text_encoder.register_forward_hook(
        lambda _, __, output: rows.append(len(output[0]))
    )
    model.encode_prompts(["a", "b", "a"])
    model.encode_prompts(["b"])
    model.encode_prompts(["b", "a"], "a")
    assert sum(rows) == 3


def test_a_wrong_number_of_negatives_is_refused(tiny_model: Maker) -> None:
    with pytest.raises(ValueError, match="negative"):
        tiny_model().encode_prompts(PROMPTS, ["one"])


def test_a_long_prompt_is_warned_about_once(
    tiny_model: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """One letter apart is one token here, and two are the ends: TOKENS - 2 letters fit, one more
    does not.
    """
    model = tiny_model()

    def words(letter: str, count: int) -> str:
        return " ".join(letter * count)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_prompts([words("x", TOKENS - 2)])
    with pytest.warns(UserWarning, match=f"beyond {TOKENS} tokens.*'{words('y', TOKENS - 1)}'"):
        long = model.encode_prompts([words("y", TOKENS - 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_prompts([words("z", TOKENS + 9), words("w", TOKENS)])
    assert not caplog.records  # nor do the libraries say it again
    assert not any(logging.getLogger(name).level for name in SAYING_IT)  # but they may speak again
    cut = model.encode_prompts([words("y", TOKENS - 2)])
    assert torch.allclose(long.tensors["prompt_embeds"], cut.tensors["prompt_embeds"], atol=1e-6)


# -- sizes, guidance, times


def test_sizes(tiny_model: Maker) -> None:
    """The VAE halves: 24 x 16 pixels are 12 x 8 latents, made with the pipeline's own and ours
    alike.
    """
    model = tiny_model()
    assert model.default_size == (16, 16)
    assert model.encode_prompts(["a"]).latent_shape == (4, 8, 8)
    condition = model.encode_prompts(PROMPTS, height=24, width=16)
    assert condition.latent_shape == (4, 12, 8)
    made = [Generator().manual_seed(i) for i in range(2)]
    mine = sample(model, condition, num_inference_steps=2, generator=made)
    again = [Generator().manual_seed(i) for i in range(2)]
    theirs = model.pipeline(
        PROMPTS,
        height=24,
        width=16,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=again,
        output_type="pt",
    ).images
    assert mine.shape == (2, 3, 24, 16)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_sample_size_of_two_numbers(tiny_model: Maker) -> None:
    """UNets may state height and width apart: (8, 12) latents are 16 x 24 pixels."""
    model = tiny_model(sample_size=(8, 12))
    assert tuple(model.default_size) == (16, 24)
    assert model.encode_prompts(["a"]).latent_shape == (4, 8, 12)


@pytest.mark.parametrize("options", [{"height": 15}, {"width": 17}, {"num_frames": 2}])
def test_a_size_that_cannot_be_is_refused(tiny_model: Maker, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="size: want"):
        tiny_model().encode_prompts(["a"], **options)


def test_unknown_inputs_are_refused(tiny_model: Maker) -> None:
    with pytest.raises(ValueError, match="control"):
        tiny_model().encode_prompts(["a"], control=torch.zeros(1))


def test_guidance_by_name(tiny_model: Maker) -> None:
    """guided = without + scale (with - without), so output(3) = 3 output(1) - 2 output(the negative
    as prompt).
    """
    model = tiny_model()
    condition = model.encode_prompts(PROMPTS, "grey")
    empty = model.encode_prompts(["grey"] * 2)
    t = torch.tensor(301.0)
    with torch.no_grad():
        guided = model.predict(LATENTS, t, condition, 3.0)
        assert torch.equal(model.predict(LATENTS, t, condition, {"text": 3.0}), guided)
        by_hand = 3 * model.predict(LATENTS, t, condition, 1.0) - 2 * model.predict(
            LATENTS, t, empty, 1
        )
    assert torch.allclose(guided, by_hand, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "rows"), [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_no_guidance_costs_no_second_forward(tiny_model: Maker, scale: float, rows: int) -> None:
    """Up to 1 the conditional branch alone runs, as in diffusers; above, both branches go in one
    batch.
    """
    model = tiny_model()
    calls: list[int] = []
    model.pipeline.unet.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    with torch.no_grad():
        model.predict(LATENTS, torch.tensor(301.0), model.encode_prompts(PROMPTS), scale)
    assert calls == [rows]


@pytest.mark.parametrize("guidance", [{"image": 2.0}, {"text": 3.0, "image": 2.0}, {}])
def test_guidance_under_an_unknown_name_is_refused(
    tiny_model: Maker, guidance: dict[str, float]
) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="text"):
        model.predict(LATENTS, torch.tensor(301.0), model.encode_prompts(PROMPTS), guidance)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_every_sample_may_have_its_own_time(tiny_model: Maker, scale: float) -> None:
    model = tiny_model()
    condition, times = model.encode_prompts(PROMPTS), torch.tensor([801.0, 51.0])
    with torch.no_grad():
        both = model.predict(LATENTS, times, condition, scale)
        for i in range(2):
            alone = model.predict(LATENTS[i : i + 1], times[i], condition[[i]], scale)
            assert torch.allclose(both[i : i + 1], alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DDPMScheduler",
        "LCMScheduler",
    ],
)
def test_any_sampler_it_came_with_becomes_ddim(tiny_model: Maker, name: str) -> None:
    """As ``DDIMScheduler.from_config`` would: the same schedule, spacing and offset, and no
    clipping of latents.
    """
    options = SCHEDULE | {
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    if name in ("DDPMScheduler", "LCMScheduler"):
        options["clip_sample"] = False
    model = tiny_model(scheduler=getattr(diffusers, name)(**options))
    mine = pictures(model)
    assert type(model.pipeline.scheduler).__name__ == name
    model.pipeline.scheduler = DDIMScheduler.from_config(
        model.pipeline.scheduler.config, clip_sample=False
    )
    assert torch.allclose(mine, diffusers_pictures(model.pipeline), atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_the_schedule_has_not_are_refused(tiny_model: Maker, steps: int) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=f"^num_inference_steps: want 1 to 1000, got {steps}$"):
        model.times(steps, (4, 8, 8))
    assert len(model.times(1000, (4, 8, 8))) == 1000


@pytest.mark.parametrize(
    "options", [{"thresholding": True}, {"prediction_type": "flow_prediction"}]
)
def test_a_schedule_that_is_not_understood_is_refused(options: dict[str, Any]) -> None:
    pipeline = stable_diffusion(
        scheduler=diffusers.DPMSolverMultistepScheduler(**SCHEDULE | options)
    )
    with pytest.raises(ValueError, match=r"thresholding|flow_prediction"):
        StableDiffusion(pipeline)


# -- pictures


def test_decode_is_the_pipelines_and_differentiable(tiny_model: Maker) -> None:
    """Reward gradients reach the latents through it; the range is closed, [0, 1]."""
    model = tiny_model()
    latents = (20 * LATENTS).requires_grad_()
    media = model.decode(latents)
    pipeline = model.pipeline
    with torch.no_grad():
        raw = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    wanted = pipeline.image_processor.postprocess(raw, output_type="pt")
    assert torch.allclose(media, wanted, atol=1e-6)
    assert float(media.detach().min()) == 0.0  # the check above saw the clamp at work
    assert float(media.detach().max()) == 1.0
    (gradient,) = torch.autograd.grad(media.sum(), latents)
    assert float(gradient.abs().max()) > 0


def test_encode_is_the_posterior_mean(tiny_model: Maker) -> None:
    """In the latents' unit: times the scaling factor; white is +1 to the VAE. No sampling: twice
    the same.
    """
    model = tiny_model()
    media = torch.rand(2, 3, 16, 16, generator=Generator().manual_seed(0))
    vae = model.pipeline.vae
    with torch.no_grad():
        wanted = vae.encode(2 * media - 1).latent_dist.mode() * vae.config.scaling_factor
        found = model.encode(media)
        assert torch.equal(model.encode(media), found)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.shape == (2, 4, 8, 8)


def test_half_precision_keeps_latents_in_float32(tiny_model: Maker) -> None:
    model = tiny_model()
    for module in model.components().values():
        module.to(torch.bfloat16)
    condition = model.encode_prompts(PROMPTS)
    assert condition.tensors["prompt_embeds"].dtype == torch.bfloat16
    assert model.predict(LATENTS, torch.tensor(301.0), condition, 3.0).dtype == torch.bfloat16
    kept = rollout(model, condition, num_inference_steps=2, latents=LATENTS)
    assert kept.latents.dtype == kept.log_probs.dtype == torch.float32
    assert not torch.equal(kept.final, kept.final.bfloat16().float())
    media = pictures(model)
    assert media.dtype == torch.float32
    assert media.isfinite().all()


def test_a_unet_of_another_precision_than_its_texts(tiny_model: Maker) -> None:
    """Texts may be kept in float32 while the UNet runs in bfloat16."""
    model = tiny_model()
    condition = model.encode_prompts(PROMPTS)
    model.pipeline.unet.to(torch.bfloat16)
    for scale in (1.0, 3.0):
        assert model.predict(LATENTS, torch.tensor(301.0), condition, scale).dtype == torch.bfloat16
