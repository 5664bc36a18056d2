"""The loop around a method: load, resume, evaluate, step, save, export. It knows no algorithm."""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .. import bundled, methods, pipelines
from ..distributed import rank_slice
from ..errors import UserError, user_mistakes, writing
from ..files import sync, whole_file
from ..galleries.diversity import diversity, embeddings
from ..galleries.gallery import METADATA, Gallery
from ..galleries.prompts import load_prompts, require_disjoint
from ..galleries.sampling import sample
from ..galleries.scoring import score
from ..galleries.table import SCORES, ScoresTable, check_names
from ..methods.batches import Batch
from ..methods.state import TrainState
from ..pipelines import Flow, FlowSDE
from ..pipelines.attention import attention_of, describe, use_attention
from ..pipelines.seeding import generator, seed_of
from ..precision import dtype_of, exact_float32
from ..progress import ProgressCallback, silent
from ..reward_heads import RewardSet, reward_set
from . import checkpoint
from .calibration import combination
from .card import card
from .data import Data, MediaData, PairData, PromptData
from .early_stopping import Guard, surprises
from .journal import Journal
from .memory import as_it_was, encode_and_free, save_memory
from .placebo import Shuffled
from .recipe import Recipe, difference
from .sharding import held, put_together, require_equal_calls, shard
from .signals import Stopped, StopSignals

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("align_gen")
PICTURES_SHOWN = 16  # by trackers


@dataclass
class Run:
    """A finished run: its folder, and what was measured before and after."""

    folder: Path
    recipe: Recipe
    before: ScoresTable
    after: ScoresTable
    metrics: list[dict[str, Any]] = field(default_factory=list)
    denoiser_calls: int = 0


@exact_float32()
def finetune(
    recipe: Recipe | str,
    out: str | Path | None = None,
    *,
    progress: ProgressCallback = silent,
    model: Any = None,
) -> Run:
    """Fine-tune a generator towards rewards, measuring before, during and after.

    Writes the run directory ``out`` (or ``recipe.run.out``). The same call again resumes where it
    stopped, and returns at once when the run is finished. Started by ``accelerate launch``, the
    processes share the prompts of a step and the pictures of a gallery; what they compute together
    is what one would alone.

    Args:
        model: a Model or pipeline object to train instead of loading ``recipe.model.path``.

    Raises:
        UserError: a mistake in the recipe, its files or ``out``; nothing is written then.
        Stopped: SIGTERM or Ctrl-C came, and everything done until then is saved.
        RunFailure: a checkpoint could not be written; those before it stand.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    run = Path(out or recipe.run.out or "runs/latest")
    text = recipe.to_yaml()
    _require_same(run, text)
    with user_mistakes():
        data = load_data(recipe)
        held_out = load_prompts(recipe.prompts.eval)
        require_disjoint([{"prompt": prompt} for prompt in data.prompts], held_out)
        rewards = (
            reward_set(bundled.reward_spec(recipe.rewards)) if recipe.rewards else RewardSet({})
        )
        rewards.combination = combination(recipe.combine, rewards)
        judges = _judges(recipe, rewards)
        judges.require(())
        check_names(held_out, judges.heads)
        trackers = None if recipe.run.tracker == "none" else recipe.run.tracker
        precision = {"fp32": "no"}.get(recipe.model.dtype, recipe.model.dtype)
        AcceleratorState._reset_state(reset_partial_state=False)
        accelerator = Accelerator(
            mixed_precision=precision, log_with=trackers, project_dir=str(run)
        )
        if trackers and not accelerator.log_with:
            raise UserError(f"run.tracker: {trackers!r} is not installed (pip install {trackers})")
        _require_shares(accelerator, recipe, len(held_out))
        loaded = load_model(recipe, model)
        for key in ("free_text_encoders", "shard"):
            if getattr(recipe.memory, key) and model is not None:
                raise UserError(
                    f"memory.{key}: the model is yours; want model.path, to load one for the run"
                )
    with ExitStack() as stack:
        stack.enter_context(as_it_was(loaded))
        stack.push(
            lambda kind, *_: loaded.untrain() if kind else None
        )  # who holds the model gets it back untrained
        with user_mistakes():
            use_attention(
                loaded, recipe.model.attention, dtype_of(recipe.model.dtype), accelerator.device
            )
            prepare_model(recipe, loaded)
        _claim(run, text, accelerator)
        log.info("attention: %s", describe(attention_of(loaded)))
        for surprise in surprises(recipe, loaded):
            log.warning("%s", surprise)
        if trackers:
            accelerator.init_trackers("align_gen", config={"recipe": text})
        state = prepare_state(recipe, loaded, accelerator)
        if recipe.memory.free_text_encoders:
            encode_and_free(
                loaded, ["", *data.prompts, *(row["prompt"] for row in held_out)]
            )  # "": a dropped caption
        for judge in (rewards, judges):
            if recipe.memory.offload_rewards:
                judge.offload = frozenset(judge.heads)
            judge.to(accelerator.device)
        if recipe.run.placebo:
            rewards = Shuffled(
                rewards.heads,
                rewards.weights,
                rewards.offload,
                rewards.combination,
                seed=recipe.run.seed,
            )
        told = progress if accelerator.is_main_process else silent
        return learn(state, recipe, run, data, held_out, rewards, judges, told)


def learn(
    state: TrainState,
    recipe: Recipe,
    run: Path,
    data: Data,
    held_out: list[dict[str, Any]],
    rewards: RewardSet,
    judges: RewardSet,
    progress: ProgressCallback,
) -> Run:
    """From the last checkpoint to the end: measure, step, save, measure, export."""
    restored = checkpoint.restore(state, run)
    writes = state.accelerator.is_main_process
    journal = Journal(run / "metrics.jsonl", state.step, writes=writes)
    options = recipe.method_options()
    take_step = methods.load(recipe.method["name"]).step
    steps = recipe.run.steps
    every = recipe.evaluate.every
    saved = state.step if restored else None

    def note(numbers: dict[str, Any]) -> None:
        journal.add(numbers)
        state.accelerator.log(
            {key: value for key, value in numbers.items() if key != "step"}, step=state.step
        )

    def note_measurement(step: int, table: ScoresTable, seen: Mapping[str, float]) -> None:
        if writes and not journal.measured(step):
            note({"step": step, **measurement(table, judges), **seen})
            show_pictures(state, table)

    def measure(name: str) -> ScoresTable:
        table = evaluate(
            state, recipe, judges, held_out, run / "samples" / name, name, progress, stopping
        )
        note_measurement(state.step, table, guard.see(state.step, table))
        if every and guard.best_step == state.step:
            _export(state, run / "best")
        return table

    with StopSignals() as stopping:
        before = evaluate(
            state, recipe, judges, held_out, run / "before", "before", progress, stopping
        )
        guard = Guard.of(recipe, before, restored)
        note_measurement(0, before, {})
        while True:
            if state.anywhere(stopping.signum is not None):
                if saved != state.step:
                    checkpoint.save(state, run, guard.progress())
                raise Stopped(
                    f"stopped after step {state.step} of {steps}, which is saved", stopping.signum
                )
            if every and 0 < state.step < steps and state.step % every == 0:
                measure(f"step-{state.step:06d}")
            if state.step == steps or guard.stop:
                break
            started = time.monotonic()
            batch = draw_batch(data, recipe, state)
            with counted_calls(state):
                numbers = take_step(state, batch, state.model, rewards, options, recipe.sampling)
            state.step += 1
            numbers = {
                "step": state.step,
                **numbers,
                "seconds": round(time.monotonic() - started, 3),
            }
            note(numbers)
            progress("train", state.step, steps, numbers)
            if state.step % recipe.run.save_every == 0 or state.step == steps:
                checkpoint.save(state, run, guard.progress())
                saved = state.step
        if guard.stop and saved != state.step:
            checkpoint.save(state, run, guard.progress())
        after = measure("final")
    _export(state, run / "export", card(recipe, before, after))
    if every and recipe.eval_rewards and guard.best_step != state.step:
        where = (
            f"step {guard.best_step}, kept in {run / 'best'}"
            if guard.best_step
            else "before training"
        )
        log.warning("the held-out rewards were best %s; %s has the end", where, run / "export")
    state.accelerator.end_training()
    return Run(run, recipe, before, after, journal.merged(), state.denoiser_calls)


# --- making ready ---------------------------------------------------------------------------------


def load_model(recipe: Recipe, model: Any = None) -> "pipelines.Model":
    """The recipe's model, or the given one, with the adapter to go on from."""
    section = recipe.model
    source = bundled.model_path(section.path) if model is None else model
    made = pipelines.load(
        source, **({"dtype": dtype_of(section.dtype)} if section.dtype != "fp32" else {})
    )
    if section.adapter is not None:
        made.reload(Path(section.adapter))
    return made


def prepare_model(recipe: Recipe, made: "pipelines.Model") -> None:
    """Give it its LoRA or its full copy; every number of the recipe that depends on the model is
    checked.
    """
    section = recipe.model
    sampling = recipe.sampling
    if sampling.flow_sde is not None:
        if not isinstance(made.process, Flow):
            raise UserError("sampling.flow_sde: this is no flow model; sampling.eta sets its noise")
        made.process = FlowSDE(sampling.flow_sde)
    if made.wants:
        raise UserError(
            f"model.path: {type(made).__name__} wants {made.wants} beside each prompt, which no recipe has"
        )
    size = (sampling.height or made.default_size[0], sampling.width or made.default_size[1])
    shape = made.latent_shape(*size, sampling.num_frames or made.default_frames)
    made.times(recipe.evaluate.num_inference_steps, shape)
    times = made.times(sampling.num_inference_steps, shape)
    if (
        sampling.eta > 0
        and not (made.process.std(times[:, 0], times[:, 1], sampling.eta) > 0).any()
    ):
        steps = sampling.num_inference_steps
        raise UserError(
            f"sampling.num_inference_steps: {steps} leaves no stochastic step on this model; want more"
        )
    if section.lora is None:
        made.train_full()
    else:
        lora = section.lora
        with torch.random.fork_rng(
            devices=[]
        ):  # its first matrices are drawn from the global generator
            torch.manual_seed(seed_of(recipe.run.seed, "lora"))
            made.train_lora(pipelines.LoraOptions(lora.rank, lora.alpha, lora.target_modules))
    save_memory(made, recipe.memory)
    for parameter in made.parameters():  # small updates vanish in half precision
        parameter.data = parameter.data.float()
    for (
        module
    ) in made.copies.values():  # as the policy began: the same weights, run in the same precision
        for parameter in module.parameters():
            parameter.data = parameter.data.float()


def prepare_state(
    recipe: Recipe, model: "pipelines.Model", accelerator: "Accelerator"
) -> TrainState:
    """Optimizer, average and devices."""
    optim = recipe.optim
    if recipe.memory.shard:  # first: nothing whole comes to the device
        shard(model, accelerator.device)
        log.info("weights in each process: %s", held(model))
    model.to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer = accelerator.prepare(optimizer)
    for (
        name,
        module,
    ) in (
        model.trainable.items()
    ):  # for its precision alone: gradients add up in ``TrainState.update``
        model.trainable[name] = accelerator.prepare_model(module, evaluation_mode=True)
        if accelerator.num_processes > 1:
            for parameter in (
                each for each in module.parameters() if not isinstance(each, DTensor)
            ):
                torch.distributed.broadcast(parameter.data, 0)
    for name, module in model.copies.items():
        placed = not model.offload_copies
        model.copies[name] = accelerator.prepare_model(
            module, device_placement=placed, evaluation_mode=True
        )
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


def load_data(recipe: Recipe) -> Data:
    """What the recipe's method learns from; what had to be left out is said once."""
    options = recipe.method_options()
    kind = methods.load(recipe.method["name"]).kind(options)
    data: Data
    if kind == "pairs":
        data = PairData.load(str(recipe.data.pairs))
    elif kind == "media":
        data = MediaData.load(str(recipe.data.media), options.images_per_prompt)
    else:
        data = PromptData([row["prompt"] for row in load_prompts(str(recipe.prompts.train))])
    if data.skipped:
        log.warning(
            "left out of the data: %s",
            ", ".join(f"{count} {why}" for why, count in data.skipped.items()),
        )
    return data


def draw_batch(data: Data, recipe: Recipe, state: TrainState) -> Batch:
    """This process's share of the step's units: epochs are permutations, a function of (seed, step)
    alone.
    """
    count = recipe.method["prompts_per_step"]
    first = state.step * count
    places = [first + number for number in rank_slice(count, state.accelerator)]
    units = [
        _shuffled(len(data), recipe.run.seed, place // len(data))[place % len(data)]
        for place in places
    ]
    return data.batch(units, places, state.model, recipe.sampling)


def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "prompts", epoch)).tolist()
    return order


def _judges(recipe: Recipe, rewards: RewardSet) -> RewardSet:
    """Optimised and held-out heads together, for galleries."""
    held_out = (
        reward_set(bundled.reward_spec(recipe.eval_rewards))
        if recipe.eval_rewards
        else RewardSet({})
    )
    if both := sorted(rewards.heads.keys() & held_out.heads.keys()):
        raise UserError(
            f"eval_rewards: {both} is optimised too; a held-out reward needs another name"
        )
    heads = {**rewards.heads, **held_out.heads}
    rule = rewards.rule if rewards.heads else None
    return RewardSet(heads, offload=rewards.offload | held_out.offload, combination=rule)


# --- measuring ------------------------------------------------------------------------------------


def evaluate(
    state: TrainState,
    recipe: Recipe,
    judges: RewardSet,
    prompts: list[dict[str, Any]],
    folder: Path,
    phase: str,
    progress: ProgressCallback,
    stopping: StopSignals,
) -> ScoresTable:
    """Sample held-out prompts with the averaged weights and score them; what is already there is
    not made again.
    """
    crew = state.accelerator
    settings = recipe.evaluate
    guidance = (
        settings.guidance_scale
        if settings.guidance_scale is not None
        else recipe.sampling.guidance_scale
    )

    def report(_: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        if stopping.signum is not None:  # before the next batch: nothing that counts is lost
            raise Stopped(
                f"stopped while drawing {phase}; step {state.step} is saved", stopping.signum
            )
        progress(phase, done, total, numbers)

    if not state.anywhere((folder / METADATA).is_file()):
        with state.averaged():
            sample(
                state.model,
                prompts,
                out=folder,
                seeds=settings.seeds,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=guidance,
                eta=settings.eta,
                height=recipe.sampling.height,
                width=recipe.sampling.width,
                num_frames=recipe.sampling.num_frames,
                batch_size=settings.batch_size,
                note={"weights": "average" if state.ema is not None else "raw"},
                origin=_origin(recipe),
                progress=report,
                accelerator=crew,
            )
    if not state.anywhere((folder / SCORES).is_file()):
        gallery = Gallery.load(folder)
        own = rank_slice(len(gallery), crew)
        part = Gallery(gallery.folder, gallery.rows[own.start : own.stop])
        table = ScoresTable.join(
            state.gather_objects(score(part, judges, batch_size=settings.batch_size))
        )
        if crew.is_main_process:
            table.save(folder / SCORES)
        crew.wait_for_everyone()
    return ScoresTable.load(folder / SCORES).at(folder)


def measurement(table: ScoresTable, judges: RewardSet) -> dict[str, float]:
    """What the journal says of a gallery: every head's mean, and how different the pictures of a
    prompt are.
    """
    numbers = {f"eval/{head}/mean": table.mean(head) for head in table.heads}
    eye = next(
        (head for head in reversed(judges.heads.values()) if hasattr(head, "embed_images")), None
    )
    if eye is not None and table.folder is not None:
        gallery = Gallery.load(table.folder)
        different = diversity(gallery.rows, embeddings(gallery, eye))
        numbers |= {} if different is None else {"eval/diversity": different}
    return numbers


def show_pictures(state: TrainState, table: ScoresTable) -> None:
    """The gallery's first pictures, or their first frames, to trackers that show some."""
    trackers = [tracker for tracker in state.accelerator.trackers if hasattr(tracker, "log_images")]
    if not trackers or table.folder is None:
        return
    gallery = Gallery.load(table.folder)
    media = [gallery.media(index) for index in range(min(PICTURES_SHOWN, len(gallery)))]
    pictures = torch.stack([each[0] if each.ndim == 4 else each for each in media])  # (N, 3, H, W)
    for tracker in trackers:
        wants_channels_first = tracker.name == "tensorboard"
        shown = pictures if wants_channels_first else pictures.movedim(1, -1)
        tracker.log_images({"held-out": shown.numpy()}, step=state.step)


def _origin(recipe: Recipe) -> dict[str, str]:
    """What a gallery says of its model: the one training began with; the adapter it made meanwhile
    comes on top.
    """
    section = recipe.model
    options = {
        "adapter": section.adapter,
        "dtype": section.dtype if section.dtype != "fp32" else None,
    }
    return {"model": section.path} | {
        key: value for key, value in options.items() if value is not None
    }


@contextmanager
def counted_calls(state: TrainState) -> Iterator[None]:
    """Inside, samples that pass through the trained networks are added to
    ``state.denoiser_calls``.
    """

    def count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state.denoiser_calls += len(inputs[0] if inputs else named["hidden_states"])

    hooks = [
        module.register_forward_pre_hook(count, with_kwargs=True)
        for module in state.model.trainable.values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- the run directory ----------------------------------------------------------------------------


def _require_same(run: Path, text: str) -> None:
    """A run directory belongs to one recipe."""
    file = run / "recipe.yaml"
    try:
        exists = file.is_file()
    except OSError as error:
        raise UserError(f"{run}: cannot be written ({error.strerror})") from error
    if exists:
        theirs = _completed(file)
        if theirs != text:
            raise UserError(
                f"{run}: holds the run of another recipe; it differs in: {difference(text, theirs)}"
            )
    elif run.exists() and (
        not run.is_dir() or any(path.name != ".recipe.yaml.part" for path in run.iterdir())
    ):
        raise UserError(f"{run}: want a new or empty folder, or one of the same recipe")


def _completed(file: Path) -> str:
    """A run's recipe with what has been added to recipes since at its default; as it is where it
    cannot be read.
    """
    try:
        return Recipe.load(file).to_yaml()
    except UserError:
        return file.read_text()


def _require_shares(accelerator: "Accelerator", recipe: Recipe, held_out: int) -> None:
    """Several processes are ours to join, and each must have a prompt; of a network in shards,
    equally many.
    """
    from accelerate.utils import DistributedType

    kind = accelerator.distributed_type
    ranks = accelerator.num_processes
    ours = (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
        DistributedType.MULTI_XPU,
    )
    if kind not in ours:
        raise UserError(
            f"finetune: {kind.value} is not supported; want accelerate's plain multi-process launch, with "
            "memory.shard=true where the model does not fit"
        )
    if recipe.method["prompts_per_step"] < ranks:
        count = recipe.method["prompts_per_step"]
        raise UserError(
            f"method.prompts_per_step: {count} leaves some of {ranks} processes without a prompt; want more"
        )
    if recipe.memory.shard:
        if ranks == 1:
            raise UserError(
                "memory.shard: there is one process to hold the shards; want a launch of several"
            )
        if recipe.memory.offload_reference:
            raise UserError(
                "memory.offload_reference: its shards stay where they are; want one of it and memory.shard"
            )
        require_equal_calls(
            recipe.method["prompts_per_step"], held_out * len(recipe.evaluate.seeds), ranks
        )


def _claim(run: Path, text: str, accelerator: "Accelerator") -> None:
    if accelerator.is_main_process:
        _write_recipe(run, text)
    accelerator.wait_for_everyone()


def _write_recipe(run: Path, text: str) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        with whole_file(run / "recipe.yaml") as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{run}: cannot be written ({error.strerror})") from error


def _export(state: TrainState, folder: Path, text: str | None = None) -> None:
    """What was trained, averaged, whole or not at all; with its card."""
    with state.averaged(), put_together(state.model), writing(folder):
        if state.accelerator.is_main_process:
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            state.model.export(part)
            if text is not None:
                (part / "README.md").write_text(text)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
            sync(folder.parent)
    state.accelerator.wait_for_everyone()
