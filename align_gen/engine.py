"""The loop around a method: load, resume, evaluate, step, save, export. It knows no algorithm."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import bundled, checkpoint, methods, pipelines
from .batches import Prompts
from .card import card
from .errors import UserError, user_mistakes
from .gallery import whole_file
from .memory import as_it_was, encode_and_free, save_memory
from .pipelines import Flow, FlowSDE
from .pipelines.attention import attention_of, describe, use_attention
from .pipelines.seeding import generator, seed_of
from .placebo import Shuffled
from .prompts import load_prompts, require_disjoint
from .recipe import Recipe, difference
from .reward_heads import RewardSet, reward_set
from .reward_heads.base import label
from .sampling import sample
from .scores import ScoresTable, check_names, score
from .state import TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("align_gen")
SCORES = "scores.parquet"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Listener = Callable[[str, int, int, Mapping[str, Any]], None]  # phase, done, total, numbers to show


def silent(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
    """A listener that says nothing."""


@dataclass
class Run:
    """A finished run: its folder, and what was measured before and after."""

    folder: Path
    recipe: Recipe
    before: ScoresTable
    after: ScoresTable
    metrics: list[dict[str, Any]] = field(default_factory=list)
    denoiser_calls: int = 0


def finetune(
    recipe: Recipe | str, out: str | Path | None = None, *, listen: Listener = silent, model: Any = None
) -> Run:
    """Fine-tune a generator towards rewards, measuring before, during and after.

    Writes the run directory ``out`` (or ``recipe.run.out``). The same call again resumes where it stopped, and returns
    at once when the run is finished.

    Args:
        model: a Model or pipeline object to train instead of loading ``recipe.model.path``.

    Raises:
        UserError: a mistake in the recipe, its files or ``out``; nothing is written then.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    run = Path(out or recipe.run.out or "runs/latest")
    text = recipe.to_yaml()
    _require_same(run, text)
    train, held_out = load_prompts(recipe.prompts.train), load_prompts(recipe.prompts.eval)
    require_disjoint(train, held_out)
    with user_mistakes():
        rewards = reward_set(bundled.reward_spec(recipe.rewards))
        judges = _judges(recipe, rewards)
        judges.require(())
        check_names(held_out, judges.heads)
        trackers = None if recipe.run.tracker == "none" else recipe.run.tracker
        precision = {"fp32": "no"}.get(recipe.model.dtype, recipe.model.dtype)
        AcceleratorState._reset_state(reset_partial_state=False)
        accelerator = Accelerator(mixed_precision=precision, log_with=trackers, project_dir=str(run))
        if trackers and not accelerator.log_with:
            raise UserError(f"run.tracker: {trackers!r} is not installed (pip install {trackers})")
        if accelerator.num_processes > 1:
            raise UserError("finetune: one process only as yet; start it without accelerate launch")
        loaded = load_model(recipe, model)
        if recipe.memory.free_text_encoders and model is not None:
            raise UserError("memory.free_text_encoders: the model is yours; want model.path, to load one for the run")
    with ExitStack() as stack:
        stack.enter_context(as_it_was(loaded))
        stack.push(lambda kind, *_: loaded.untrain() if kind else None)  # who holds the model gets it back untrained
        with user_mistakes():
            use_attention(loaded, recipe.model.attention, DTYPES[recipe.model.dtype], accelerator.device)
            prepare_model(recipe, loaded)
        _claim(run, text)
        log.info("attention: %s", describe(attention_of(loaded)))
        if trackers:
            accelerator.init_trackers("align_gen", config={"recipe": text})
        state = prepare_state(recipe, loaded, accelerator)
        if recipe.memory.free_text_encoders:
            encode_and_free(loaded, [row["prompt"] for row in (*train, *held_out)])
        for judge in (rewards, judges):
            judge.offload = recipe.memory.offload_rewards
            judge.to(accelerator.device)
        if recipe.run.placebo:
            rewards = Shuffled(rewards.heads, rewards.weights, rewards.offload, seed=recipe.run.seed)
        return learn(state, recipe, run, train, held_out, rewards, judges, listen)


def learn(
    state: TrainState,
    recipe: Recipe,
    run: Path,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    rewards: RewardSet,
    judges: RewardSet,
    listen: Listener,
) -> Run:
    """From the last checkpoint to the end: measure, step, save, measure, export."""
    progress = checkpoint.load(state, run)
    metrics = _read_metrics(run, state.step)
    options, take_step = recipe.method_options(), methods.load(recipe.method["name"]).step
    before = evaluate(state, recipe, judges, held_out, run / "before", "before", listen)
    guard = Guard(recipe, before, worse=progress.get("worse", 0))
    while state.step < recipe.run.steps and not guard.stop:
        started = time.monotonic()
        batch = draw_prompts(state.model, train, recipe, state)
        with counted_calls(state):
            numbers = take_step(state, batch, state.model, rewards, options, recipe.sampling)
        state.step += 1
        numbers = {"step": state.step, **numbers, "seconds": round(time.monotonic() - started, 3)}
        if recipe.evaluate.every and state.step % recipe.evaluate.every == 0 and state.step < recipe.run.steps:
            name = f"step-{state.step:06d}"
            table = evaluate(state, recipe, judges, held_out, run / "samples" / name, name, listen)
            numbers |= {f"eval/{head}/mean": mean(table, head) for head in table.heads}
            guard.see(table)
        metrics.append(numbers)
        _append(run / "metrics.jsonl", numbers)
        state.accelerator.log({key: value for key, value in numbers.items() if key != "step"}, step=state.step)
        listen("train", state.step, recipe.run.steps, numbers)
        if state.step % recipe.run.save_every == 0 or state.step == recipe.run.steps or guard.stop:
            checkpoint.save(state, run, {"worse": guard.worse})
    after = evaluate(state, recipe, judges, held_out, run / "samples" / "final", "after", listen)
    with state.averaged():
        state.model.export(run / "export")
    with whole_file(run / "export" / "README.md") as file:
        file.write(card(recipe, before, after).encode())
    state.accelerator.end_training()
    return Run(run, recipe, before, after, metrics, state.denoiser_calls)


# --- making ready ----------------------------------------------------------------------------------------------------


def load_model(recipe: Recipe, model: Any = None) -> "pipelines.Model":
    """The recipe's model, or the given one, with the adapter to go on from."""
    section = recipe.model
    source = bundled.model_path(section.path) if model is None else model
    made = pipelines.load(source, **({"dtype": DTYPES[section.dtype]} if section.dtype != "fp32" else {}))
    if section.adapter is not None:
        made.reload(Path(section.adapter))
    return made


def prepare_model(recipe: Recipe, made: "pipelines.Model") -> None:
    """Give it its LoRA or its full copy; every number of the recipe that depends on the model is checked."""
    section, sampling = recipe.model, recipe.sampling
    if sampling.flow_sde is not None:
        if not isinstance(made.process, Flow):
            raise UserError("sampling.flow_sde: this is no flow model; sampling.eta sets its noise")
        made.process = FlowSDE(sampling.flow_sde)
    if made.wants:
        raise UserError(f"model.path: {type(made).__name__} wants {made.wants} beside each prompt, which no recipe has")
    size = (sampling.height or made.default_size[0], sampling.width or made.default_size[1])
    shape = made.latent_shape(*size, sampling.num_frames or made.default_frames)
    made.times(recipe.evaluate.num_inference_steps, shape)
    times = made.times(sampling.num_inference_steps, shape)
    if sampling.eta > 0 and not (made.process.std(times[:, 0], times[:, 1], sampling.eta) > 0).any():
        steps = sampling.num_inference_steps
        raise UserError(f"sampling.num_inference_steps: {steps} leaves no stochastic step on this model; want more")
    if section.lora is None:
        made.train_full()
    else:
        lora = section.lora
        with torch.random.fork_rng(devices=[]):  # its first matrices are drawn from the global generator
            torch.manual_seed(seed_of(recipe.run.seed, "lora"))
            made.train_lora(pipelines.LoraOptions(lora.rank, lora.alpha, lora.target_modules))
    save_memory(made, recipe.memory)
    for parameter in made.parameters():  # small updates vanish in half precision
        parameter.data = parameter.data.float()
    for module in made.copies.values():  # as the policy began: the same weights, run in the same precision
        for parameter in module.parameters():
            parameter.data = parameter.data.float()


def prepare_state(recipe: Recipe, model: "pipelines.Model", accelerator: "Accelerator") -> TrainState:
    """Optimizer, average and devices."""
    optim = recipe.optim
    model.to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer = accelerator.prepare(optimizer)
    for name, module in model.trainable.items():
        model.trainable[name] = accelerator.prepare(module)
    for name, module in model.copies.items():
        placed = not model.offload_copies
        model.copies[name] = accelerator.prepare_model(module, device_placement=placed, evaluation_mode=True)
    ema = None
    if optim.ema is not None:
        from diffusers.training_utils import EMAModel

        ema = EMAModel(model.parameters(), decay=optim.ema)
    return TrainState(
        model, optimizer, accelerator, optim.max_grad_norm, recipe.run.seed, ema=ema, micro_batch=optim.micro_batch
    )


def draw_prompts(model: "pipelines.Model", rows: list[dict[str, Any]], recipe: Recipe, state: TrainState) -> Prompts:
    """This process's share of the step's prompts: epochs are permutations, a function of (seed, step) alone."""
    count = recipe.method["prompts_per_step"]
    rank, ranks = state.accelerator.process_index, state.accelerator.num_processes
    if count % ranks:
        raise UserError(f"method.prompts_per_step: {count} cannot be shared by {ranks} processes")
    first = state.step * count
    places = range(first + rank * count // ranks, first + (rank + 1) * count // ranks)
    order = [_shuffled(len(rows), recipe.run.seed, place // len(rows))[place % len(rows)] for place in places]
    texts = [rows[index]["prompt"] for index in order]
    sampling = recipe.sampling
    condition = model.encode_prompts(
        texts, height=sampling.height, width=sampling.width, num_frames=sampling.num_frames
    )
    return Prompts(texts, condition, list(places))


def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "prompts", epoch)).tolist()
    return order


def _judges(recipe: Recipe, rewards: RewardSet) -> RewardSet:
    """Optimised and held-out heads together, for galleries."""
    held_out = reward_set(bundled.reward_spec(recipe.eval_rewards)).heads if recipe.eval_rewards else {}
    if both := sorted(rewards.heads.keys() & held_out.keys()):
        raise UserError(f"eval_rewards: {both} is optimised too; a held-out reward needs another name")
    return RewardSet({**rewards.heads, **held_out})


# --- measuring -------------------------------------------------------------------------------------------------------


def evaluate(
    state: TrainState,
    recipe: Recipe,
    judges: RewardSet,
    prompts: list[dict[str, Any]],
    folder: Path,
    phase: str,
    listen: Listener,
) -> ScoresTable:
    """Sample held-out prompts with the averaged weights and score them; what is already there is not made again."""
    if (folder / SCORES).is_file():
        table = ScoresTable.load(folder / SCORES)
        table.folder = str(folder)
        return table
    settings = recipe.evaluate
    guidance = settings.guidance_scale if settings.guidance_scale is not None else recipe.sampling.guidance_scale

    def report(done: int, total: int) -> None:
        listen(phase, done, total, {})

    with state.averaged():
        gallery = sample(
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
        )
    table = score(gallery, judges, batch_size=settings.batch_size)
    table.save(folder / SCORES)
    return table


def _origin(recipe: Recipe) -> dict[str, str]:
    """What a gallery says of its model: the one training began with; the adapter it made meanwhile comes on top."""
    section = recipe.model
    options = {"adapter": section.adapter, "dtype": section.dtype if section.dtype != "fp32" else None}
    return {"model": section.path} | {key: value for key, value in options.items() if value is not None}


@dataclass
class Guard:
    """Stops a run whose held-out rewards stay clearly below where they began."""

    recipe: Recipe
    before: ScoresTable
    worse: int = 0

    @property
    def stop(self) -> bool:
        return self.recipe.stop.when == "eval_rewards_fall" and self.worse >= self.recipe.stop.patience

    def see(self, table: ScoresTable) -> None:
        """Count evaluations in a row in which some held-out mean is 0.25 standard deviations below its start."""
        fallen = [
            name
            for name in map(label, self.recipe.eval_rewards)
            if mean(table, name) < mean(self.before, name) - 0.25 * spread(self.before, name)
        ]
        self.worse = self.worse + 1 if fallen else 0


def mean(table: ScoresTable, head: str) -> float:
    """Mean over the pictures that could be read."""
    values = [value for value in table.heads[head] if value is not None]
    return sum(values) / max(len(values), 1)


def spread(table: ScoresTable, head: str) -> float:
    """Standard deviation over pictures (ddof 1)."""
    values = torch.tensor([value for value in table.heads[head] if value is not None], dtype=torch.float64)
    return values.std().item() if len(values) > 1 else 0.0


@contextmanager
def counted_calls(state: TrainState) -> Iterator[None]:
    """Inside, samples that pass through the trained networks are added to ``state.denoiser_calls``."""

    def count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state.denoiser_calls += len(inputs[0] if inputs else named["hidden_states"])

    hooks = [module.register_forward_pre_hook(count, with_kwargs=True) for module in state.model.trainable.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- the run directory -----------------------------------------------------------------------------------------------


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
            raise UserError(f"{run}: holds the run of another recipe; it differs in: {difference(text, theirs)}")
    elif run.exists() and (not run.is_dir() or any(path.name != ".recipe.yaml.part" for path in run.iterdir())):
        raise UserError(f"{run}: want a new or empty folder, or one of the same recipe")


def _completed(file: Path) -> str:
    """A run's recipe with what has been added to recipes since at its default; as it is where it cannot be read."""
    try:
        return Recipe.load(file).to_yaml()
    except UserError:
        return file.read_text()


def _claim(run: Path, text: str) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        with whole_file(run / "recipe.yaml") as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{run}: cannot be written ({error.strerror})") from error


def _read_metrics(run: Path, step: int) -> list[dict[str, Any]]:
    """The metrics up to ``step``; later lines, of a run that was killed after them, are dropped from the file."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    kept = []
    for line in file.read_text().splitlines():
        try:
            numbers = json.loads(line)
        except ValueError:  # torn by a kill
            break
        if numbers["step"] <= step:
            kept.append(numbers)
    with whole_file(file) as stream:
        stream.write("".join(json.dumps(numbers) + "\n" for numbers in kept).encode())
    return kept


def _append(file: Path, numbers: Mapping[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(numbers) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
