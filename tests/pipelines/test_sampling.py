"""Rollouts: what the same diffusers pipeline draws, densities that replay, randomness that belongs
to a sample.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor

from align_gen.pipelines import Condition, Model, Rollout, rollout, sample
from align_gen.pipelines.families.stable_diffusion import StableDiffusion
from align_gen.pipelines.sampling import step_log_prob
from align_gen.pipelines.seeding import generator, seed_of
from tests.tiny.parts import ddim
from tests.tiny.stable_diffusion import stable_diffusion

PROMPTS = ["a red cat", "two dogs"]
NEGATIVE = "grey"
LATENTS = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """Shared, for speed: each test puts in the scheduler it wants."""
    return stable_diffusion()


def adapter(pipeline: StableDiffusionPipeline, **scheduler: Any) -> StableDiffusion:
    pipeline.scheduler = ddim(**scheduler)
    return StableDiffusion(pipeline)


def generators(count: int, seed: int = 0) -> list[Generator]:
    return [generator(seed, "test", index=i) for i in range(count)]


def diffusers_own(
    pipeline: StableDiffusionPipeline, scale: float, output: str, steps: int = 3
) -> Tensor:
    """What the pipeline itself makes of PROMPTS from LATENTS, eta=0: latents, or pictures in [0,
    1].
    """
    made: Tensor = pipeline(
        PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=LATENTS,
        output_type=output,
    ).images
    return made


def ours(model: Model, scale: float, steps: int = 3) -> tuple[Tensor, Tensor]:
    """(latents, pictures) of ``rollout`` and ``sample`` at eta=0."""
    condition = model.encode_prompts(PROMPTS, NEGATIVE)
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": scale,
        "latents": LATENTS,
    }
    return rollout(model, condition, eta=0, **options).final, sample(model, condition, **options)


# -- eta=0 is DDIM


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("alpha_to_one", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_eta_zero_is_the_pipeline_with_ddim(
    pipeline: StableDiffusionPipeline,
    spacing: str,
    alpha_to_one: bool,
    prediction: str,
    scale: float,
) -> None:
    """3 steps, so that 1000 // 3 and the next grid point are different times."""
    model = adapter(
        pipeline,
        timestep_spacing=spacing,
        set_alpha_to_one=alpha_to_one,
        prediction_type=prediction,
        steps_offset=0,
    )
    latents, pictures = ours(model, scale)
    assert torch.allclose(latents, diffusers_own(pipeline, scale, "latent"), atol=1e-5)
    assert torch.allclose(pictures, diffusers_own(pipeline, scale, "pt"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"steps_offset": 1},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.3, "prediction_type": "sample"},
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "sample",
            "timestep_spacing": "linspace",
        },
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": torch.linspace(0.001, 0.02, 1000).tolist()},
        {"num_train_timesteps": 500},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_other_option_of_the_schedule_counts(
    pipeline: StableDiffusionPipeline, options: dict[str, Any]
) -> None:
    latents, pictures = ours(adapter(pipeline, **{"steps_offset": 0} | options), 5.0, steps=4)
    assert torch.allclose(latents, diffusers_own(pipeline, 5.0, "latent", 4), atol=1e-5, rtol=1e-5)
    assert torch.allclose(pictures, diffusers_own(pipeline, 5.0, "pt", 4), atol=1e-5)
    plain, _ = ours(adapter(pipeline, steps_offset=0), 5.0, steps=4)
    assert not torch.allclose(latents, plain, atol=1e-3)  # the option does something here at all


@pytest.mark.slow
def test_the_oracle_can_tell(pipeline: StableDiffusionPipeline) -> None:
    """In the tiny pipeline guidance, text, negative text and spacing all move the result by far
    more than 1e-5.
    """
    model = adapter(pipeline)
    start = ours(model, 5.0)[0]
    moved = [
        ours(model, 1.0)[0],
        rollout(
            model,
            model.encode_prompts(PROMPTS, "blue"),
            eta=0,
            num_inference_steps=3,
            latents=LATENTS,
        ).final,
        ours(adapter(pipeline, timestep_spacing="trailing"), 5.0)[0],
    ]
    assert all(float((other - start).abs().max()) > 1e-2 for other in moved)


def test_the_pipelines_scheduler_is_left_as_it_was(pipeline: StableDiffusionPipeline) -> None:
    model = adapter(pipeline)
    before = pipeline.scheduler.timesteps.clone()
    ours(model, 1.0)
    assert torch.equal(pipeline.scheduler.timesteps, before)
    assert pipeline.scheduler.num_inference_steps is None


# -- what a rollout keeps


def test_the_shapes_of_a_rollout(pipeline: StableDiffusionPipeline) -> None:
    """B=1 keeps its axis; x_0 … x_T are T+1; videos and packing are the adapter's own matter."""
    model = adapter(pipeline)
    kept = rollout(
        model, model.encode_prompts(["a cat"]), num_inference_steps=4, latents=LATENTS[:1]
    )
    assert kept.latents.shape == (1, 5, 4, 8, 8)
    assert kept.latents.dtype == kept.log_probs.dtype == torch.float32
    assert torch.equal(kept.latents[:, 0], LATENTS[:1])
    assert torch.equal(kept.final, kept.latents[:, -1])
    assert kept.times.tolist() == [[751, 501], [501, 251], [251, 1], [1, -249]]
    assert kept.log_probs.shape == (1, 4)
    assert not kept.latents.requires_grad


@pytest.mark.parametrize(
    ("options", "stochastic"),
    [
        (
            {"steps_offset": 0, "set_alpha_to_one": False},
            [0, 1, 2],
        ),  # ends t=0 -> abar_0: no noise left to add
        ({"steps_offset": 0, "set_alpha_to_one": True}, [0, 1, 2]),
        ({"steps_offset": 1, "set_alpha_to_one": True}, [0, 1, 2]),
        (
            {"steps_offset": 1, "set_alpha_to_one": False},
            [0, 1, 2, 3],
        ),  # t=1 -> abar_0 still has variance
    ],
)
def test_steps_without_noise_are_left_out(
    pipeline: StableDiffusionPipeline, options: dict[str, Any], stochastic: list[int]
) -> None:
    model = adapter(pipeline, **options)
    kept = rollout(
        model, model.encode_prompts(PROMPTS), num_inference_steps=4, generator=generators(2)
    )
    assert kept.stochastic.tolist() == stochastic
    assert kept.log_probs.shape == (2, len(stochastic))
    assert kept.log_probs.isfinite().all()
    assert kept.latents.isfinite().all()


def test_the_ode_has_no_densities(pipeline: StableDiffusionPipeline) -> None:
    """Nor does it draw noise for its steps: a generator has given one x_T, and goes on from
    there.
    """
    model, own = adapter(pipeline), generators(2)
    kept = rollout(
        model, model.encode_prompts(PROMPTS), num_inference_steps=4, eta=0.0, generator=own
    )
    fresh = generators(2)[0]
    torch.randn(4, 8, 8, generator=fresh)
    assert torch.equal(own[0].get_state(), fresh.get_state())
    assert kept.stochastic.tolist() == []
    assert kept.stochastic.dtype == torch.long
    assert kept.log_probs.shape == (2, 0)


def test_kept_densities_belong_to_the_kept_latents(pipeline: StableDiffusionPipeline) -> None:
    """The log-probability kept is the Normal's at the kept x_s around the pipeline's own DDIM step;
    sum = d mean.
    """
    model = adapter(pipeline)
    condition = model.encode_prompts(PROMPTS)
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}
    kept = rollout(model, condition, generator=generators(2), **options)
    summed = rollout(model, condition, generator=generators(2), reduction="sum", **options)
    assert torch.allclose(summed.log_probs, kept.log_probs * 4 * 8 * 8, rtol=1e-5)
    scheduler = ddim()
    scheduler.set_timesteps(4)
    for step, t in enumerate(scheduler.timesteps):
        x_t, x_s = kept.latents[:, step], kept.latents[:, step + 1]
        with torch.no_grad():
            output = model.predict(x_t, t, condition, 5.0)
        mean = scheduler.step(
            output, t, x_t, eta=1.0, variance_noise=torch.zeros_like(x_t)
        ).prev_sample
        std = scheduler._get_variance(int(t), int(t) - 250).double() ** 0.5
        wanted = (
            torch.distributions.Normal(mean.double(), std).log_prob(x_s.double()).flatten(1).mean(1)
        )
        assert torch.allclose(kept.log_probs[:, step].double(), wanted, atol=1e-3)


def test_a_rollout_is_random_in_its_generator_only(pipeline: StableDiffusionPipeline) -> None:
    model = adapter(pipeline)
    condition = model.encode_prompts(PROMPTS)

    def draw(**options: Any) -> Tensor:
        return rollout(model, condition, num_inference_steps=3, **options).latents

    assert torch.equal(
        draw(generator=Generator().manual_seed(3)), draw(generator=Generator().manual_seed(3))
    )
    assert not torch.equal(
        draw(generator=Generator().manual_seed(3)), draw(generator=Generator().manual_seed(4))
    )
    state = torch.get_rng_state()
    draw(generator=generators(2))
    assert torch.equal(torch.get_rng_state(), state)
    a, b = (
        draw(latents=LATENTS, generator=generators(2)),
        draw(latents=LATENTS, generator=generators(2, seed=1)),
    )
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.equal(a[:, 1], b[:, 1])


# -- replay


def replayed(
    model: Model, kept: Rollout, condition: Condition, batch_size: int, **options: Any
) -> Tensor:
    """(B, S) log-probabilities evaluated again, ``batch_size`` rows at a time."""
    columns = []
    for step in kept.stochastic.tolist():
        parts = []
        for start in range(0, len(condition), batch_size):
            rows = slice(start, start + batch_size)
            parts.append(step_log_prob(model, kept, step, condition[rows], rows=rows, **options))
        columns.append(torch.cat(parts))
    return torch.stack(columns, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "prediction"),
    [(1, "epsilon"), (3, "v_prediction"), (4, "epsilon"), (8, "epsilon")],
)
def test_replay_at_another_batch_size(
    pipeline: StableDiffusionPipeline, batch_size: int, prediction: str
) -> None:
    """A clip of 1e-4 asks for a tenth of it; held here to 2e-6, with guidance and the last,
    smallest std.
    """
    model = adapter(pipeline, prediction_type=prediction)
    condition = model.encode_prompts([f"cat {i}" for i in range(8)], NEGATIVE)
    kept = rollout(model, condition, num_inference_steps=5, generator=generators(8))
    assert 4 in kept.stochastic
    with torch.no_grad():
        again = replayed(model, kept, condition, batch_size, eta=1.0, guidance_scale=5.0)
    assert torch.allclose(again, kept.log_probs, rtol=0, atol=2e-6)
    with torch.no_grad():  # the guided model is the policy: another scale is another density
        other = replayed(model, kept, condition, batch_size, eta=1.0, guidance_scale=3.0)
    assert float((other - kept.log_probs).abs().mean()) > 1e-3


def test_replay_is_differentiable(pipeline: StableDiffusionPipeline) -> None:
    model = adapter(pipeline)
    condition = model.encode_prompts(PROMPTS)
    kept = rollout(model, condition, num_inference_steps=3, generator=generators(2))
    weight = pipeline.unet.conv_out.weight
    found = step_log_prob(model, kept, 0, condition, eta=1.0, guidance_scale=5.0)
    assert found.shape == (2,)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    assert float(gradient.abs().max()) > 0


def test_a_step_without_noise_has_no_density_to_ask_for(pipeline: StableDiffusionPipeline) -> None:
    """log N(x; x, 0) is no number: to ask is an error, not a NaN that reaches the weights."""
    model = adapter(pipeline, steps_offset=0)
    condition = model.encode_prompts(PROMPTS)
    kept = rollout(model, condition, num_inference_steps=3, generator=generators(2))
    with pytest.raises((ValueError, AssertionError)):
        step_log_prob(model, kept, 2, condition, eta=1.0, guidance_scale=5.0)


# -- a sample's own randomness


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_do_not_depend_on_batch_mates(
    pipeline: StableDiffusionPipeline, eta: float
) -> None:
    """The same generators, all at once, in parts of 2, alone, and in another order."""
    model = adapter(pipeline)
    condition = model.encode_prompts([f"cat {i}" for i in range(5)])

    def draw(rows: Sequence[int], batch_size: int) -> Tensor:
        own = generators(5)
        return sample(
            model,
            condition[list(rows)],
            num_inference_steps=3,
            eta=eta,
            generator=[own[i] for i in rows],
            batch_size=batch_size,
        )

    whole = draw(range(5), 5)
    assert whole.shape == (5, 3, 16, 16)
    assert torch.allclose(draw(range(5), 2), whole, atol=1e-5)
    assert torch.allclose(draw([3], 1), whole[3:4], atol=1e-5)
    assert torch.allclose(draw([4, 0], 2), whole[[4, 0]], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "latents", [None, torch.randn(4, 4, 8, 8, generator=Generator().manual_seed(0))]
)
def test_batch_size_bounds_memory_only(
    pipeline: StableDiffusionPipeline, eta: float, latents: Tensor | None
) -> None:
    """With one generator for all, too."""
    model = adapter(pipeline)
    condition = model.encode_prompts([f"cat {i}" for i in range(4)])

    def draw(batch_size: int) -> Tensor:
        g = Generator().manual_seed(0)
        return sample(
            model,
            condition,
            num_inference_steps=2,
            eta=eta,
            generator=g,
            latents=latents,
            batch_size=batch_size,
        )

    assert torch.allclose(draw(3), draw(4), atol=1e-5)


def test_one_generator_gives_every_sample_its_own_noise(pipeline: StableDiffusionPipeline) -> None:
    """From one x_T and one prompt, at eta=1, two samples part; at eta=0 they begin as a rollout
    does.
    """
    model = adapter(pipeline)
    condition = model.encode_prompts(["cat"]).repeat(2)
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}
    same = LATENTS[:1].repeat(2, 1, 1, 1)
    first, second = sample(
        model, condition, eta=1.0, latents=same, generator=Generator(), **options
    )
    assert float((first - second).abs().max()) > 1e-2
    kept = rollout(model, condition, eta=0.0, generator=Generator().manual_seed(0), **options)
    drawn = sample(model, condition, eta=0.0, generator=Generator().manual_seed(0), **options)
    assert torch.allclose(drawn, model.decode(kept.final).detach(), atol=1e-5)


def test_the_pipeline_draws_the_same_noise_from_the_same_generators(
    pipeline: StableDiffusionPipeline,
) -> None:
    """A list of generators gives diffusers and us the same pictures; so a seed means the same in
    both.
    """
    model = adapter(pipeline)
    mine = sample(
        model,
        model.encode_prompts(PROMPTS),
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=generators(2),
    )
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=generators(2),
        output_type="pt",
    ).images
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_sample_is_the_decoded_rollout(pipeline: StableDiffusionPipeline) -> None:
    model = adapter(pipeline)
    condition = model.encode_prompts(PROMPTS)
    options: dict[str, Any] = {"num_inference_steps": 3, "eta": 1.0, "guidance_scale": 3.0}
    media = sample(model, condition, generator=generators(2), **options)
    final = rollout(model, condition, generator=generators(2), **options).final
    assert torch.allclose(media, model.decode(final).detach(), atol=1e-5)
    assert media.dtype == torch.float32
    assert not media.requires_grad


def test_progress_counts_samples(pipeline: StableDiffusionPipeline) -> None:
    done: list[int] = []
    model = adapter(pipeline)
    condition = model.encode_prompts(["cat"] * 5)
    sample(
        model,
        condition,
        num_inference_steps=1,
        batch_size=2,
        generator=generators(5),
        progress=done.append,
    )
    assert done == [2, 2, 1]


def test_a_wrong_number_of_generators_is_refused(pipeline: StableDiffusionPipeline) -> None:
    model = adapter(pipeline)
    with pytest.raises(
        ValueError, match="generator: want one, or one for each of 2 samples, got 3"
    ):
        rollout(
            model, model.encode_prompts(PROMPTS), num_inference_steps=1, generator=generators(3)
        )
    with pytest.raises(ValueError, match="generator"):
        sample(
            model,
            model.encode_prompts(PROMPTS),
            num_inference_steps=1,
            generator=generators(3),
            batch_size=2,
        )


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 8, 8), (2, 4, 4, 8)])
def test_latents_of_another_shape_are_refused(
    pipeline: StableDiffusionPipeline, shape: tuple[int, ...]
) -> None:
    """One row would be broadcast, silently, and log_probs come out with one row too."""
    model = adapter(pipeline)
    for draw in (rollout, sample):
        with pytest.raises(ValueError, match="latents"):
            draw(
                model,
                model.encode_prompts(PROMPTS),
                num_inference_steps=1,
                latents=torch.zeros(shape),
            )
    with pytest.raises(ValueError, match="latents"):  # not after a batch is done, nor never
        sample(
            model,
            model.encode_prompts(PROMPTS),
            num_inference_steps=1,
            latents=torch.zeros(shape),
            batch_size=1,
        )


# -- seeds


def test_seeds_are_those_they_always_were() -> None:
    """First four bytes of SHA-256("0/train/0/0"), halved; galleries and checkpoints written before
    rely on it.
    """
    import hashlib

    assert seed_of(0, "train") == int(hashlib.sha256(b"0/train/0/0").hexdigest()[:8], 16) // 2
    assert (
        0
        <= min(seed_of(s, "x") for s in range(200))
        < max(seed_of(s, "x") for s in range(200))
        < 2**31
    )


@pytest.mark.parametrize(
    "other",
    [
        (1, "a", 0, 0),
        (0, "b", 0, 0),
        (0, "a", 1, 0),
        (0, "a", 0, 1),
        (0, "a", 0, "cat"),
        (0, "a", 10, 0),
    ],
)
def test_every_argument_makes_another_stream(other: tuple[Any, ...]) -> None:
    first = torch.randn(64, generator=generator(0, "a", 0, 0))
    second = torch.randn(64, generator=generator(*other))
    assert abs(float((first * second).mean())) < 0.5
    assert not torch.equal(first, second)


@pytest.mark.parametrize("scheduler", ["diffusion", "flow"])
def test_steps_of_several_trajectories_in_one_call(scheduler: str) -> None:
    """Row 0 at its last stochastic step and row 1 at its first: what each has in a call of its own
    step.
    """
    from tests.tiny import subject

    model = subject("sd" if scheduler == "diffusion" else "sd3").model
    condition = model.encode_prompts(PROMPTS)
    options: dict[str, Any] = {"eta": 1.0, "guidance_scale": 2.0}
    drawn = rollout(model, condition, num_inference_steps=4, generator=generators(2), **options)
    rows, columns = torch.tensor([0, 1]), torch.tensor([len(drawn.stochastic) - 1, 0])
    with torch.no_grad():
        mixed = step_log_prob(
            model, drawn, drawn.stochastic[columns], condition[rows], rows=rows, **options
        )
    assert torch.allclose(mixed, drawn.log_probs[rows, columns], atol=1e-5)


def test_a_graph_of_each_step_alone() -> None:
    """With ``graph`` the draw is the same to the bit, and a step's log-probability has the gradient
    of its replay.
    """
    from tests.tiny import subject

    model = subject("sd").model
    model.train_full()
    condition = model.encode_prompts(PROMPTS)
    options: dict[str, Any] = {"eta": 1.0, "guidance_scale": 2.0}
    plain, kept = (
        rollout(
            model, condition, num_inference_steps=3, generator=generators(2), graph=graph, **options
        )
        for graph in (False, True)
    )
    assert torch.equal(plain.latents, kept.latents) and torch.equal(plain.log_probs, kept.log_probs)
    assert (
        kept.log_probs.requires_grad
        and not plain.log_probs.requires_grad
        and not kept.latents.requires_grad
    )
    parameter = next(
        p
        for name, p in model.trainable["unet"].named_parameters()
        if name.endswith("conv_out.weight")
    )
    again = step_log_prob(model, plain, int(plain.stochastic[1]), condition, **options)
    (expected,) = torch.autograd.grad(again.sum(), parameter)
    (found,) = torch.autograd.grad(kept.log_probs[:, 1].sum(), parameter)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
