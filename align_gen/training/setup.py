"""Make a recipe ready to run: data, rewards, model and optimizer, checked against each other."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from .. import distributed, methods
from ..errors import UserError, user_mistakes
from ..galleries.columns import check_names
from ..galleries.prompts import load_prompts, require_disjoint
from ..methods.state import TrainState
from ..opening import open_model, open_rewards
from ..pipelines import Flow, FlowSDE, LoraOptions, Model
from ..pipelines.attention import use_attention
from ..pipelines.seeding import seed_of
from ..precision import dtype_of
from ..reward_heads import RewardSet
from .bounds import require_memory, require_single_precision
from .calibration import combination
from .data import Data, draw_batch, load_data
from .memory import as_it_was, encode_and_free, save_memory
from .placebo import Shuffled
from .recipe import Recipe
from .sharding import require_shares, shard, shard_report
from .trial import try_rewards

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("align_gen")


@dataclass
class Session:
    """A recipe made ready: everything that a step, or a measurement, takes.

    Attributes:
        held_out: rows of the held-out prompts, each with "prompt".
        rewards: what is optimised.
        all_rewards: the heads that are optimised and those that are only measured.
    """

    recipe: Recipe
    state: TrainState
    data: Data
    held_out: list[dict[str, Any]]
    rewards: RewardSet
    all_rewards: RewardSet

    @classmethod
    def of(cls, recipe: Recipe, accelerator: "Accelerator", model: Any = None) -> "Session":
        """Open and check everything that the recipe names, and bring it to the device.

        Args:
            model: a Model or pipeline object to train instead of loading ``recipe.model.path``.

        Raises:
            UserError: a mistake in the recipe or its files.
        """
        with user_mistakes():
            # The cheap checks come first: a large model is loaded only where nothing else is wrong.
            data = load_data(recipe)
            held_out = load_prompts(recipe.prompts.eval)
            require_disjoint([{"prompt": prompt} for prompt in data.prompts], held_out)
            rewards = optimised_rewards(recipe)
            all_rewards = measured_rewards(recipe, rewards)
            all_rewards.require(())
            check_names(held_out, all_rewards.heads)
            require_shares(accelerator, recipe, len(held_out))
            require_single_precision(recipe)
            loaded = load_model(recipe, model)
            require_memory(recipe, loaded, len(held_out), accelerator)
            section = recipe.model
            dtype = dtype_of(section.dtype)
            use_attention(loaded, section.attention, dtype, accelerator.device)
            prepare_model(recipe, loaded)

        # Outside of the block above: what the device raises is no mistake of the user's.
        state = prepare_state(recipe, loaded, accelerator)

        if recipe.memory.free_text_encoders:
            # The empty text is a dropped caption.
            encode_and_free(loaded, ["", *data.prompts, *(row["prompt"] for row in held_out)])
        if recipe.memory.offload_rewards:
            rewards = replace(rewards, offload=frozenset(rewards.heads))
            all_rewards = replace(all_rewards, offload=frozenset(all_rewards.heads))

        # Both sets share heads, but each keeps a device of its own.
        rewards.to(accelerator.device)
        all_rewards.to(accelerator.device)
        with user_mistakes():
            try_rewards(all_rewards, loaded, recipe.sampling, held_out[0]["prompt"])
        # Last: what is measured stays true, and only what is optimised is shuffled.
        if recipe.run.placebo:
            rewards = Shuffled.of(rewards, recipe.run.seed)
        return cls(recipe, state, data, held_out, rewards, all_rewards)

    @property
    def model(self) -> Model:
        return self.state.model

    @property
    def accelerator(self) -> "Accelerator":
        return self.state.accelerator

    def step(self) -> dict[str, float]:
        """Take the next step of the run; returns its metrics."""
        recipe = self.recipe
        batch = draw_batch(self.data, recipe, self.state)
        take_step = methods.step_of(recipe.method.name)
        metrics = take_step(self.state, batch, self.rewards, recipe.method, recipe.sampling)
        self.state.step += 1
        return metrics


@contextmanager
def open_session(
    recipe: Recipe, accelerator: "Accelerator", model: Any = None
) -> Iterator[Session]:
    """A session; afterwards a model that was handed in samples and attends as it did before.

    After an error such a model has its weights of before, too.
    """
    for key in ("free_text_encoders", "shard"):
        if getattr(recipe.memory, key) and model is not None:
            raise UserError(
                f"memory.{key}: the model is yours; want model.path, to load one for the run"
            )
    if model is None:
        yield Session.of(recipe, accelerator)
        return
    with user_mistakes():
        loaded = open_model(model)
    with ExitStack() as stack:
        # Callbacks run backwards: weights first, and then how the model samples and attends.
        stack.enter_context(as_it_was(loaded))
        stack.push(lambda kind, *_: loaded.restore_weights() if kind else None)
        yield Session.of(recipe, accelerator, loaded)


def start_accelerator(recipe: Recipe, folder: Path) -> "Accelerator":
    """Start the accelerator of a run: devices, processes, precision and trackers.

    Raises:
        UserError: the tracker is not installed.
    """
    from accelerate.state import AcceleratorState

    tracker = None if recipe.run.tracker == "none" else recipe.run.tracker
    precision = {"fp32": "no"}.get(recipe.model.dtype, recipe.model.dtype)
    # An earlier run of this process may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = distributed.start_accelerator(
        mixed_precision=precision, log_with=tracker, project_dir=str(folder)
    )
    if tracker and not accelerator.log_with:
        raise UserError(f"run.tracker: {tracker!r} is not installed (pip install {tracker})")
    return accelerator


def optimised_rewards(recipe: Recipe) -> RewardSet:
    """Rewards that the recipe optimises, under its rule of combination."""
    rewards = open_rewards(recipe.rewards) if recipe.rewards else RewardSet({})
    return replace(rewards, combination=combination(recipe.combine, rewards))


def measured_rewards(recipe: Recipe, rewards: RewardSet) -> RewardSet:
    """Optimised and held-out heads together, for galleries."""
    held_out = open_rewards(recipe.eval_rewards) if recipe.eval_rewards else RewardSet({})
    return RewardSet(
        {**rewards.heads, **held_out.heads},
        offload=rewards.offload | held_out.offload,
        combination=rewards.rule if rewards.heads else None,
    )


def load_model(recipe: Recipe, model: Any = None) -> Model:
    """The recipe's model, or the given one, with the adapter to go on from."""
    section = recipe.model
    source = section.path if model is None else model
    return open_model(source, dtype=section.dtype, adapter=section.adapter)


def prepare_model(recipe: Recipe, model: Model) -> None:
    """Give a model its LoRA or its full copy, and set it up to save memory.

    Raises:
        UserError: a number of the recipe does not fit this model.
    """
    from diffusers.training_utils import cast_training_params

    section = recipe.model
    require_fit(recipe, model)
    if section.lora is None:
        model.train_full()
    else:
        lora = section.lora
        # Its first matrices are drawn from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(recipe.run.seed, "lora"))
            model.train_lora(LoraOptions(lora.rank, lora.alpha, lora.target_modules))
    save_memory(model, recipe.memory)

    # Small updates vanish in half precision. The frozen copies are float32 too, so that they are
    # what the policy was when it began.
    cast_training_params([*model.trainable.values()], torch.float32)
    for module in model.reference_copies.values():
        module.float()


def require_fit(recipe: Recipe, model: Model) -> None:
    """Check sizes, steps and noise against a model, and set its process.

    Raises:
        UserError: names the key and what this model accepts.
    """
    sampling = recipe.sampling
    if sampling.flow_sde is not None:
        if not isinstance(model.process, Flow):
            raise UserError("sampling.flow_sde: this is no flow model; sampling.eta sets its noise")
        model.process = FlowSDE(sampling.flow_sde)
    if model.required_inputs:
        raise UserError(
            f"model.path: {type(model).__name__} wants {model.required_inputs} beside each prompt, "
            "which no recipe has"
        )

    # Sizes and grids of drawing and of measuring: each raises for what the model cannot do.
    height = sampling.height or model.default_size[0]
    width = sampling.width or model.default_size[1]
    shape = model.latent_shape(height, width, sampling.num_frames or model.default_frames)
    model.times(recipe.evaluate.num_inference_steps, shape)
    times = model.times(sampling.num_inference_steps, shape)
    std = model.process.std(times[:, 0], times[:, 1], sampling.eta)
    # With few steps each of them may end almost clean, which leaves no density to learn from.
    if sampling.eta > 0 and not (std > 0).any():
        raise UserError(
            f"sampling.num_inference_steps: {sampling.num_inference_steps} leaves no stochastic "
            "step on this model; want more"
        )


def prepare_state(recipe: Recipe, model: Model, accelerator: "Accelerator") -> TrainState:
    """Optimizer, average and devices."""
    optim = recipe.optim
    # Sharded before anything else: no whole network ever comes to a device.
    if recipe.memory.shard:
        shard(model, accelerator.device)
        log.info("weights in each process: %s", shard_report(model))
    model.to(accelerator.device)
    adamw = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer = accelerator.prepare(adamw)

    # Accelerate gives the networks only their precision: gradients add up in ``TrainState.update``.
    for name, module in model.trainable.items():
        model.trainable[name] = accelerator.prepare_model(module, evaluation_mode=True)
        # All start from the first process's weights, whatever each has loaded or drawn.
        if accelerator.num_processes > 1:
            whole = (each for each in module.parameters() if not isinstance(each, DTensor))
            for parameter in whole:
                torch.distributed.broadcast(parameter.data, 0)
    for name, module in model.reference_copies.items():
        model.reference_copies[name] = accelerator.prepare_model(
            module, device_placement=not model.reference_on_cpu, evaluation_mode=True
        )

    # After the parameters have come to the device: the average lies beside them.
    ema = None
    if optim.ema is not None:
        from diffusers.training_utils import EMAModel

        ema = EMAModel(model.parameters(), decay=optim.ema)
    return TrainState(
        model,
        optimizer,
        accelerator,
        optim.max_grad_norm,
        recipe.run.seed,
        ema=ema,
        micro_batch=optim.micro_batch,
        sharded=recipe.memory.shard,
    )


def mismatches(recipe: Recipe, model: Model) -> Iterable[str]:
    """Where training differs from how pictures will be made: what is learned may not hold there."""
    sampling = recipe.sampling
    steps = recipe.evaluate.num_inference_steps
    size = (sampling.height or model.default_size[0], sampling.width or model.default_size[1])
    if size != model.default_size:
        ours = "x".join(map(str, size))
        theirs = "x".join(map(str, model.default_size))
        yield (
            f"sampling: trains at {ours}, and the model's own size is {theirs}; "
            "look at pictures of both"
        )
    if sampling.num_inference_steps != steps:
        yield (
            f"sampling: trains on {sampling.num_inference_steps} denoising steps, and galleries "
            f"are drawn with {steps}"
        )
