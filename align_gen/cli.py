"""The command line. Heavy libraries are imported by the command that needs them."""

import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .commands import reward_commands
from .commands.arguments import Json, device, parse_reward
from .errors import UserError

app = typer.Typer(
    name="align-gen",
    help="Align image and video generators with rewards: sample, score, compare, fine-tune.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
WORST = 3  # regressions of each column that a table shows; --json has more
Attention = Annotated[
    str, typer.Option(help="auto, sdpa, math, flash, efficient, cudnn or xformers.")
]
Seeds = Annotated[str, typer.Option(help="One picture of every prompt for each number: 0,1,2.")]


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, any other failure one line
    and 1.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        with spoken():
            code = app(standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        print(f"align-gen: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if hasattr(
            error, "format_message"
        ):  # the parser's own, whichever library typer takes it from
            _usage(error)
        if debug:
            raise
        print(
            f"align-gen: {type(error).__name__}: {error}{_goes_on()} (--debug shows where)",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    if code == 130:  # an interruption, as typer tells it
        print(f"align-gen: interrupted{_goes_on()}", file=sys.stderr)
    if isinstance(code, int) and code:
        raise SystemExit(code)


def _goes_on() -> str:
    resumes = {"demo", "finetune"} & set(sys.argv[1:2])
    return "; the same command goes on from the last checkpoint" if resumes else ""


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a run that was asked to stop, and had saved itself, says so and ends with the
    signal's exit code.
    """
    from .training.signals import Stopped

    try:
        yield
    except Stopped as stopped:
        print(f"align-gen: {stopped}; the same command goes on from there", file=sys.stderr)
        raise SystemExit(128 + stopped.signum) from None


@contextmanager
def spoken() -> Iterator[None]:
    """Inside, what the package logs goes to stderr; of several processes one speaks."""
    logger = logging.getLogger("align_gen")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _usage(error: Any) -> NoReturn:
    """Words that the parser did not take, in one line; the whole help for no words at all."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        where = getattr(getattr(error, "ctx", None), "command_path", "align-gen")
        print(
            f"align-gen: {' '.join(error.format_message().split())} (see {where} --help)",
            file=sys.stderr,
        )
    raise SystemExit(2) from None


@app.command(epilog="Example: align-gen demo --seed 1 --out runs/demo-1")
def demo(
    model: Annotated[str, typer.Option(help="The bundled model to align.")] = "emoji-sd",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    placebo: Annotated[
        bool,
        typer.Option("--placebo", help="Shuffle rewards within each prompt: nothing should rise."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Run directory; an unfinished one is resumed.")] = Path(
        "runs/demo"
    ),
    as_json: Json = False,
) -> None:
    """Sample, fine-tune, sample again, score, compare and report, in minutes on a CPU."""
    from .demo import RECIPES
    from .demo import demo as run_demo
    from .progress import ProgressBar

    if model not in RECIPES:
        raise UserError(f"--model {model!r}: no demo of it; have {sorted(RECIPES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("demo: one process; align-gen finetune emoji-sd-prdp runs on several")
    with stoppable(), ProgressBar() as progress:
        summary = run_demo(model, out=out, seed=seed, placebo=placebo, progress=progress)
    if as_json:
        print(json.dumps(summary))
        return
    for name in ("reward", "heldout", "alignment"):
        row = summary[name]
        low = row["ci_low"] / row["std"]
        high = row["ci_high"] / row["std"]
        print(
            f"{name:10} {row['before']:.4f} -> {row['after']:.4f}   "
            f"change in standard deviations [{low:+.2f}, {high:+.2f}], p = {row['p']:.4f}"
        )
    print(
        f"{summary['images']} pictures of {summary['prompts']} held-out prompts, {summary['seconds']:.0f} s"
    )
    print(f"open {out / 'report.html'}")


@app.command(epilog="Example: align-gen finetune sd15-prdp --set run.steps=50 --out runs/mine")
def finetune(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name or a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: section.key=value.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; an unfinished one is resumed.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="Sets model.attention.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and its cost, then stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint towards rewards, measuring before, during and after."""
    from .training.recipe import Recipe

    resolved = Recipe.load(
        recipe, [*(set_ or []), *([f"model.attention={attention}"] if attention else [])]
    )
    if dry_run:
        from .training.dry_run import describe

        print(describe(resolved))
        return
    from accelerate import PartialState

    from .galleries.comparison import compare as compare_tables
    from .progress import ProgressBar
    from .report.runs import report_run
    from .training.engine import finetune as run_finetune

    with stoppable(), ProgressBar() as progress:
        run = run_finetune(resolved, out, progress=progress)
    if not PartialState().is_main_process:
        return
    page = report_run(run.folder)
    result = compare_tables(run.before, run.after)
    print(json.dumps(result.to_json()) if as_json else f"{_table(result)}\nopen {page}")


@app.command(
    epilog="Example: align-gen sample emoji-sd --prompts emoji-heldout --seeds 0,1 --out galleries/base"
)
def sample(
    model: Annotated[str, typer.Argument(help="A bundled name, a pipeline folder or a hub name.")],
    prompts: Annotated[
        str | None, typer.Option(help="A .txt or .jsonl file, or a bundled list.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt, in place of --prompts.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With --prompt: the picture's exact seed, as in a gallery's rows."),
    ] = None,
    seeds: Seeds = "0",
    adapter: Annotated[Path | None, typer.Option(help="An export to load.")] = None,
    best_of: Annotated[int, typer.Option(help="Draw n candidates, keep the best by --reward.")] = 1,
    reward: Annotated[str | None, typer.Option(help="For --best-of: NAME[:key=value,…].")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 5.0,
    eta: Annotated[float, typer.Option(help="0 is the ODE (DDIM), 1 the DDPM posterior.")] = 0.0,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH; the model's own without it.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a video; the model's own without it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32, bf16 or fp16.")] = "fp32",
    attention: Attention = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    out: Annotated[Path, typer.Option(help="The gallery to write.")] = Path("gallery"),
) -> None:
    """Sample pictures into a gallery."""
    from . import bundled, pipelines
    from .errors import user_mistakes
    from .galleries.prompts import load_prompts
    from .galleries.sampling import sample as run_sample
    from .pipelines.attention import use_attention
    from .pipelines.guidance.best_of import BestOf
    from .precision import dtype_of
    from .progress import ProgressBar
    from .reward_heads import reward_set

    if (prompts is None) == (prompt is None):
        raise UserError("sample: want either --prompts FILE or --prompt TEXT")
    if seed is not None and prompt is None:
        raise UserError(
            "--seed goes with --prompt; with --prompts, want --seeds, or a seed in each of its rows"
        )
    if (best_of > 1) != (reward is not None):
        raise UserError("--best-of and --reward go together")
    rows = (
        load_prompts(prompts)
        if prompts is not None
        else [{"prompt": prompt} | ({} if seed is None else {"seed": seed})]
    )
    height, width = _size(size)
    origin = {
        "model": model,
        "adapter": adapter,
        "dtype": dtype,
        "reward": reward,
        "best-of": best_of,
    }
    usual = (None, "fp32", 1)
    with user_mistakes():
        judge = (
            None
            if reward is None
            else reward_set(bundled.reward_spec(dict([parse_reward(reward)])))
        )
        loaded = pipelines.load(bundled.model_path(model), dtype=dtype_of(dtype))
        if adapter is not None:
            loaded.reload(adapter)
        loaded.to(device())
        use_attention(loaded, attention)
        if judge is not None:
            judge.to(device())
    with user_mistakes(), ProgressBar() as progress:
        gallery = run_sample(
            loaded,
            rows,
            out=out,
            seeds=_numbers(seeds, "--seeds"),
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            height=height,
            width=width,
            num_frames=frames,
            guide=None if judge is None else BestOf(judge, best_of),
            batch_size=batch_size,
            origin={key: str(value) for key, value in origin.items() if value not in usual},
            progress=progress,
        )
    print(f"{len(gallery)} pictures in {gallery.folder}")


for function, example in reward_commands.EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(function)


@app.command(
    epilog="Example: align-gen compare runs/demo runs/demo --by group --fail-if 'heldout.ci_low < 0'"
)
def compare(
    a: Annotated[Path, typer.Argument(help="Scores file, scored gallery or run directory.")],
    b: Annotated[
        Path,
        typer.Argument(help="The same; a run directory twice compares its start with its end."),
    ],
    by: Annotated[str | None, typer.Option(help="Slice by a metadata column.")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help="Exit 1 when true: 'COLUMN.FIELD < NUMBER'."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two galleries pair by pair: change, 95 % interval by prompt, win rate, worst
    regressions.
    """
    from .galleries.comparison import compare as run_compare
    from .galleries.verdicts import parse_condition

    conditions = [(text, parse_condition(text)) for text in fail_if or []]
    result = run_compare(a, b, by=by)
    print(json.dumps(result.to_json()) if as_json else _table(result))
    met = [text for text, condition in conditions if condition(result)]
    for text in met:
        print(f"align-gen: failed: {text}", file=sys.stderr)
    if met:
        raise typer.Exit(1)


@app.command(epilog="Example: align-gen report runs/demo --out report.html")
def report(
    source: Annotated[
        list[Path], typer.Argument(help="A run directory, or one or two scored galleries.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """One HTML page to look at: pairs, scores, curves."""
    from .report.runs import report_galleries, report_run

    run = len(source) == 1 and (source[0] / "recipe.yaml").is_file()
    page = report_run(source[0], out) if run else report_galleries(source, out)
    print(f"open {page}")


@app.command(epilog="Example: align-gen check emoji-sd --reward clip:path=emoji-clip")
def check(
    model: Annotated[
        str, typer.Argument(help="A bundled model, a pipeline folder, or a hub name.")
    ],
    reward: Annotated[
        list[str] | None, typer.Option(help="Rewards whose gradient to look at.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16: of the weights.")] = "fp32",
    height: Annotated[
        int | None, typer.Option(help="Of the pictures; the family's own without it.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Of the pictures; the family's own without it.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Of the videos; the family's own without it.")
    ] = None,
    attention: Attention = "auto",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights cannot denoise.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure whether a model is wired right; exit 1 when a law does not hold."""
    from dataclasses import asdict

    from . import bundled, pipelines
    from .check.laws import Subject
    from .check.laws import check as run_check
    from .errors import user_mistakes
    from .pipelines.attention import use_attention
    from .precision import dtype_of
    from .reward_heads import reward_set

    with user_mistakes():
        rewards = (
            reward_set(bundled.reward_spec(dict(map(parse_reward, reward)))) if reward else None
        )
        loaded = pipelines.load(bundled.model_path(model), dtype=dtype_of(dtype)).to(device())
        use_attention(loaded, attention)
        if rewards is not None:
            rewards.to(device())
        subject = Subject.of(loaded, height=height, width=width, num_frames=frames, rewards=rewards)
    found = run_check(subject, untrained=untrained)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        _print_findings(found)
    if not all(finding.passed for finding in found):
        raise typer.Exit(1)


def _print_findings(found: list[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "law", "measured", "limit")
    for finding in found:
        figure, limit = (
            f"{x:.3g}" if isinstance(x, float | int) else x for x in (finding.figure, finding.limit)
        )
        verdict = "[green]ok[/]" if finding.passed else "[red]FAILED[/]"
        table.add_row(verdict, *map(escape, (finding.name, figure, limit)))
    Console().print(table)


@app.command(epilog="Example: align-gen bench steps --json")
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="steps: every method's step, and scoring, beside their floors. "
            "attention: every kernel that runs here, at the sizes of real models. "
            "rewards: HPS beside hpsv2's own code. "
            "sizes: on a GPU, a step of published models at full size, of random weights, and its memory."
        ),
    ] = "steps",
    model: Annotated[
        str | None,
        typer.Option(help="Of steps: emoji-sd or emoji-flow alone; of sizes: a hub name."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="trl: also its DDPOTrainer, on emoji-sd.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times each is run; medians are shown.")] = 7,
    dtype: Annotated[
        str | None, typer.Option(help="Of attention: fp32, fp16 or bf16; without it the usual one.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Of attention: the model's own on a GPU, else 1.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time what runs on the machine at hand, in turns within one run."""
    if what not in ("steps", "attention", "rewards", "sizes"):
        raise UserError(f"bench {what!r}: have ['attention', 'rewards', 'sizes', 'steps']")
    if against not in (None, "trl") or (against and what != "steps"):
        raise UserError(f"--against {against!r}: want trl, with steps")
    benches = {
        "steps": lambda: _bench_steps(model, against, rounds),
        "attention": lambda: _bench_attention(dtype, heads, rounds),
        "rewards": lambda: _bench_rewards(rounds),
        "sizes": lambda: _bench_sizes(model),
    }
    found = benches[what]()
    rows = []
    for row, line in found:
        rows.append(row)
        if not as_json:
            print(line, flush=True)
    if as_json:
        print(json.dumps(rows))


def _bench_steps(
    model: str | None, against: str | None, rounds: int
) -> Iterator[tuple[dict[str, Any], str]]:
    from accelerate import Accelerator

    from .bench.scoring import bench_scoring
    from .bench.steps import RECIPES, bench_steps
    from .bench.trl import trl_ddpo

    if model is not None and model not in RECIPES:
        raise UserError(f"--model {model!r}: have {sorted(RECIPES)}")
    accelerator = Accelerator()
    models = [model] if model else list(RECIPES)
    head = (
        f"{'':36} {'model':12} {'seconds':>9} {'iqr':>7} {'floor':>9} {'ratio':>6} {'images/s':>9}"
    )
    rows = bench_steps(accelerator, models, rounds=rounds, against=trl_ddpo if against else None)
    scoring = (bench_scoring(accelerator.device, rounds=rounds) for _ in range(model is None))
    for row in itertools.chain(rows, scoring):
        floor = (
            f"{row.floor_seconds:9.3f} {row.ratio:6.2f}"
            if row.floor_seconds and row.ratio
            else f"{'':16}"
        )
        figures = f"{row.seconds:9.3f} {row.iqr:7.3f} {floor} {row.images_per_second:9.1f}"
        line = f"{row.name:36} {row.model:12} {figures}"
        yield row.json(), f"{head}\n{line}" if head else line
        head = ""


def _bench_rewards(rounds: int) -> Iterator[tuple[dict[str, Any], str]]:
    from .bench.rewards import BARS, bench_rewards, speedups

    rows = bench_rewards(device(), rounds=rounds)
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:6.2f} x its floor"
        yield (
            row.json(),
            f"{row.name:30} {row.seconds:9.3f} s {row.images_per_second:9.1f} images/s {ratio}",
        )
    for name, times in speedups(rows).items():
        yield (
            {"name": name, "times": times, "bar": BARS[name]},
            f"{name:30} {times:9.2f} x, at least {BARS[name]}",
        )


def _bench_sizes(model: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    from accelerate import Accelerator

    from .bench.sizes import SIZES, bench_sizes

    if model is not None and model not in SIZES:
        raise UserError(f"--model {model!r}: have {sorted(SIZES)}")
    if device().type != "cuda":
        raise UserError(
            "bench sizes: no CUDA device here; finetune RECIPE --dry-run estimates memory without one"
        )
    head = (
        f"{'model':46} {'denoiser':>9} {'seconds':>9} {'pictures/s':>10} {'GiB':>7} {'estimate':>8}"
    )
    for row in bench_sizes(
        Accelerator(mixed_precision="bf16"), (model,) if model else tuple(SIZES)
    ):
        line = f"{row.model:46} {row.parameters / 1e9:7.2f} B"
        if row.seconds is None or row.peak is None:
            line += f" {row.why_not} (estimate {row.estimate / 2**30:.1f} GiB)"
        else:
            speed = f"{row.seconds:9.2f} {row.images / row.seconds:10.2f}"
            line += f" {speed} {row.peak / 2**30:7.1f} {row.estimate / 2**30:8.1f}"
        yield row.json(), f"{head}\n{line}" if head else line
        head = ""


def _bench_attention(
    dtype: str | None, heads: int | None, rounds: int
) -> Iterator[tuple[dict[str, Any], str]]:
    from .bench.attention import bench_attention
    from .precision import dtype_of

    place = device()
    fast = place.type != "cpu"
    precision = dtype_of(dtype or ("bf16" if fast else "fp32"))
    head = f"{'model':20} {'heads':>5} {'kernel':10} {'forward':>10} {'and back':>10} {'to sdpa':>8} {'error':>8}"
    for row in bench_attention(
        place, precision, heads=heads or (None if fast else 1), repeats=rounds
    ):
        line = f"{row['model']:20} {row['heads']:5d} {row['kernel']:10}"
        if row["why_not"] is not None:
            line += f" {row['why_not']}"
        else:
            forward, both = (f"{1000 * row[key]:.1f} ms" for key in ("forward_seconds", "seconds"))
            line += f" {forward:>10} {both:>10} {row['ratio']:8.2f} {row['error']:8.1e}"
        yield row, f"{head}\n{line}" if head else line
        head = ""


@app.command("list", epilog="Example: align-gen list rewards")
def list_(
    what: Annotated[str, typer.Argument(help="rewards, methods, models, recipes or prompts.")],
    as_json: Json = False,
) -> None:
    """What can be named."""
    from . import bundled

    def rewards() -> list[str]:
        from .reward_heads.registry import HEADS

        return sorted(HEADS)

    def methods() -> list[str]:
        from .methods import METHODS

        return sorted(METHODS)

    tables: dict[str, Any] = {
        "rewards": rewards,
        "methods": methods,
        "models": bundled.models,
        "recipes": bundled.recipes,
        "prompts": bundled.prompts,
        "assets": lambda: bundled.models() + bundled.prompts(),
    }
    if what not in tables:
        raise UserError(f"list {what!r}: have {sorted(tables)}")
    names = tables[what]()
    print(json.dumps(names) if as_json else "\n".join(names))


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r}: want numbers with commas, 0,1,2") from None


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise UserError(f"--size {text!r}: want HEIGHTxWIDTH, 512x512")
    return int(match[1]), int(match[2])


def _mean(column: list[float | None]) -> float:
    values = [value for value in column if value is not None]
    return sum(values) / len(values) if values else float("nan")


def _table(result: Any) -> str:
    """A comparison as aligned text."""
    lines = [
        f"{'':16} {'before':>10} {'after':>10} {'change':>10}  {'95 % interval':>24} {'wins':>6} {'p':>8} {'pairs':>6}"
    ]
    groups = {"": result.columns, **result.slices}
    for group, columns in groups.items():
        if group:
            lines.append(f"[{group}]")
        for name, c in columns.items():
            interval = f"[{c.ci_low:+.5f}, {c.ci_high:+.5f}]"
            lines.append(
                f"{name:16} {c.before:10.5f} {c.after:10.5f} {c.delta:+10.5f}  {interval:>24} "
                f"{c.win_rate:6.1%} {c.p:8.4f} {c.n:6d}"
            )
    for name, rows in result.regressions.items():
        for row in rows[:WORST]:
            pair = f"{row.get('prompt')!r}, seed {row.get('seed')}"
            lines.append(f"fell most in {name}: {row['before']:.5f} -> {row['after']:.5f}  {pair}")
    return "\n".join(lines)
