"""`align-gen bench`: what runs how fast here; a subcommand for each thing that is timed."""

import json
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import UserError
from .arguments import Json, default_device, epilog, parse_dtype
from .tables import Column, print_table

EXAMPLE = "align-gen bench steps --json"
DEFAULT = "steps"  # of a plain `align-gen bench`
HELP = ("-h", "--help")
GIB = 2**30

Rounds = Annotated[int, typer.Option(min=1, help="Times each is run; medians are shown.")]
# What --json prints of a row, and its cells in the table.
Rows = Iterator[tuple[dict[str, Any], Sequence[Any]]]

TIMES = (
    Column("", width=36),
    Column("model", width=12),
    Column("seconds", ".3f", 9),
    Column("iqr", ".3f", 7),
    Column("floor", ".3f", 9),
    Column("ratio", ".2f", 6),
    Column("images/s", ".1f", 9),
)
REWARDS = (
    Column("", width=30),
    Column("seconds", ".3f", 9),
    Column("images/s", ".1f", 9),
    Column("ratio", ".2f", 6),
    Column("floor"),
)
SIZES = (
    Column("model", width=46),
    Column("denoiser", "s", 9),
    Column("seconds", ".2f", 9),
    Column("pictures/s", ".2f", 10),
    Column("GiB", ".1f", 7),
    Column("estimate", ".1f", 8),
)
KERNELS = (
    Column("model", width=20),
    Column("heads", "d", 5),
    Column("kernel", width=10),
    Column("forward", "s", 10),
    Column("and back", "s", 10),
    Column("to sdpa", ".2f", 8),
    Column("error", ".1e", 8),
)


class Benches(TyperGroup):
    """The subcommands, of which ``steps`` may be left out; options may stand before the name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # The group's help lists the subcommands; that of steps would hide them.
        if args and args[0] in HELP:
            return super().parse_args(ctx, args)
        named = [word for word in args if word in self.commands]
        name = named[0] if named else DEFAULT
        rest = list(args)
        # The parser wants the name first, and the options after it.
        if named:
            rest.remove(name)
        elif rest and not rest[0].startswith("-"):
            raise UserError(f"bench {rest[0]!r}: have {sorted(self.commands)}")
        return super().parse_args(ctx, [name, *rest])


class Rival(str, Enum):
    """What else trains the same."""

    trl = "trl"


app = typer.Typer(cls=Benches, help="Time what runs on the machine at hand, in turns.")


@app.command(epilog=epilog("align-gen bench steps --model emoji-sd --against trl"))
def steps(
    model: Annotated[
        str | None, typer.Option(help="emoji-sd or emoji-flow; without it both, and scoring.")
    ] = None,
    against: Annotated[
        Rival | None, typer.Option(help="Also TRL's DDPOTrainer, on emoji-sd.")
    ] = None,
    rounds: Rounds = 7,
    as_json: Json = False,
) -> None:
    """Time every method's step, and scoring, beside their floors."""
    from ..bench.steps import RECIPES

    if model is not None and model not in RECIPES:
        raise UserError(f"--model {model!r}: have {sorted(RECIPES)}")
    _print(TIMES, _steps(model, against, rounds), as_json)


def _steps(model: str | None, against: Rival | None, rounds: int) -> Rows:
    from ..bench.scoring import bench_scoring
    from ..bench.steps import RECIPES, bench_steps
    from ..bench.trl import trl_ddpo
    from ..distributed import start_accelerator

    accelerator = start_accelerator()
    models = [model] if model else list(RECIPES)
    rival = trl_ddpo if against else None
    for row in bench_steps(accelerator, models, rounds=rounds, against=rival):
        yield row.json(), _times(row)
    # Scoring is no matter of the model that is trained.
    if model is None:
        row = bench_scoring(accelerator.device, rounds=rounds)
        yield row.json(), _times(row)


@app.command(epilog=epilog("align-gen bench scoring"))
def scoring(rounds: Rounds = 7, as_json: Json = False) -> None:
    """Time the scoring of a gallery beside its floor."""
    from ..bench.scoring import bench_scoring

    row = bench_scoring(default_device(), rounds=rounds)
    _print(TIMES, [(row.json(), _times(row))], as_json)


def _times(row: Any) -> Sequence[Any]:
    # Rivals have no floor of ours.
    floor = (row.floor_seconds, row.ratio)
    if not all(floor):
        floor = (None, None)
    return row.name, row.model, row.seconds, row.iqr, *floor, row.images_per_second


@app.command(epilog=epilog("align-gen bench rewards --rounds 5"))
def rewards(rounds: Rounds = 7, as_json: Json = False) -> None:
    """Time HPS beside hpsv2's own code."""
    _print(REWARDS, _rewards(rounds), as_json)


def _rewards(rounds: int) -> Rows:
    from ..bench.rewards import BARS, bench_rewards, speedups

    rows = bench_rewards(default_device(), rounds=rounds)
    for row in rows:
        floor = "" if row.ratio is None else "x its floor"
        yield row.json(), (row.name, row.seconds, row.images_per_second, row.ratio, floor)
    # What the times above come to, and the bar that each comparison has to clear.
    for name, times in speedups(rows).items():
        least = BARS[name]
        figures = {"name": name, "times": times, "bar": least}
        yield figures, (name, f"{times:9.2f} x, at least {least}")


@app.command(epilog=epilog("align-gen bench sizes"))
def sizes(
    model: Annotated[str | None, typer.Option(help="A hub name; without it all.")] = None,
    as_json: Json = False,
) -> None:
    """Time a step of published models at full size, of random weights, and its memory, on a GPU."""
    from ..bench.sizes import SIZES as MODELS

    if model is not None and model not in MODELS:
        raise UserError(f"--model {model!r}: have {sorted(MODELS)}")
    if default_device().type != "cuda":
        raise UserError(
            "bench sizes: no CUDA device here; "
            "finetune RECIPE --dry-run estimates memory without one"
        )
    _print(SIZES, _sizes((model,) if model else tuple(MODELS)), as_json)


def _sizes(models: tuple[str, ...]) -> Rows:
    from accelerate import Accelerator

    from ..bench.sizes import bench_sizes

    # In bfloat16, as these models are trained.
    for row in bench_sizes(Accelerator(mixed_precision="bf16"), models):
        name = (row.model, f"{row.parameters / 1e9:.2f} B")
        estimate = row.estimate / GIB
        if row.seconds is None or row.peak is None:
            yield row.json(), (*name, f"{row.why_not} (estimate {estimate:.1f} GiB)")
        else:
            speed = (row.seconds, row.images / row.seconds)
            yield row.json(), (*name, *speed, row.peak / GIB, estimate)


@app.command(epilog=epilog("align-gen bench attention --rounds 5"))
def attention(
    dtype: Annotated[
        str | None,
        typer.Option(parser=parse_dtype, help="fp32, fp16 or bf16; bf16 on a GPU, else fp32."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="The model's own on a GPU, else 1.")
    ] = None,
    rounds: Rounds = 7,
    as_json: Json = False,
) -> None:
    """Time every attention kernel that runs here, at the sizes of real models."""
    _print(KERNELS, _attention(dtype, heads, rounds), as_json)


def _attention(dtype: str | None, heads: int | None, rounds: int) -> Rows:
    from ..bench.attention import bench_attention
    from ..precision import dtype_of

    device = default_device()
    # A CPU needs minutes for all heads at the sizes of real models.
    if device.type == "cpu":
        dtype = dtype or "fp32"
        heads = heads or 1
    precision = dtype_of(dtype or "bf16")
    for row in bench_attention(device, precision, heads=heads, repeats=rounds):
        name = (row["model"], row["heads"], row["kernel"])
        if row["why_not"] is not None:
            yield row, (*name, row["why_not"])
        else:
            forward = f"{1000 * row['forward_seconds']:.1f} ms"
            both = f"{1000 * row['seconds']:.1f} ms"
            yield row, (*name, forward, both, row["ratio"], row["error"])


def _print(
    columns: Sequence[Column], rows: Iterable[tuple[dict[str, Any], Sequence[Any]]], as_json: bool
) -> None:
    """Print rows as a table while they come, or all of them as JSON at the end."""
    if as_json:
        print(json.dumps([figures for figures, _ in rows]))
    else:
        print_table(columns, (cells for _, cells in rows))
