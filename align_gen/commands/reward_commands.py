"""Commands around rewards: score, mine pairs, train a reward. Each imports what it needs."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from .arguments import Json, device, parse_reward

FAILURES = 20  # unreadable pictures that are named


def score(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures or videos; .tar shards, .parquet, or a URL of these; datasets:NAME[:SPLIT]."
        ),
    ],
    reward: Annotated[
        list[str], typer.Option(help="[LABEL=]NAME[:key=value,…]; may be given several times.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Scores file; scores.parquet in the gallery without it.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="hpdv2: the folder holds its four styles; print its table beside published ones."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Of the suite: the folder of its STYLE.json files, if not beside the pictures."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    combine: Annotated[
        str,
        typer.Option(
            help="How rewards become one: sum, mean, median, min, mean_minus_std, soft_min."
        ),
    ] = "sum",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="A scored gallery whose scale each reward is put on before they combine."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 when a picture cannot be read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score pictures with rewards. A corrupt one is a null row with the reason; what is known is
    not scored again.
    """
    from accelerate import Accelerator

    from .. import bundled
    from ..errors import user_mistakes
    from ..galleries.scoring import score_file
    from ..galleries.table import SCORES
    from ..progress import ProgressBar
    from ..reward_heads import reward_set
    from ..training.calibration import Combine, combination
    from ..training.yaml_text import validate

    specs = [parse_reward(text) for text in reward]
    labels = [label for label, _ in specs]
    if len(set(labels)) < len(labels):
        raise UserError(f"--reward: {labels} names one twice; give each a label: mine=clip:path=…")
    if suite is not None:
        return _suite(suite, Path(source), prompts, specs, batch_size, as_json)
    if out is None and not Path(source).is_dir():
        raise UserError(f"{source}: is no folder to keep the scores in; want --out FILE")
    target = out or Path(source) / SCORES
    with user_mistakes():
        judges = reward_set(bundled.reward_spec(dict(specs))).to(device())
        judges.combination = combination(
            validate(Combine, {"rule": combine, "calibrate": calibrate}, "--combine"), judges
        )
    crew = Accelerator()
    with ProgressBar() as progress:
        shown = progress if crew.is_main_process else None
        found = score_file(
            source, judges, target, batch_size=batch_size, progress=shown, accelerator=crew
        )
    if found is None:
        return
    if as_json:
        known = {name: None if math.isnan(value) else value for name, value in found.means.items()}
        print(
            json.dumps(
                {
                    "means": known,
                    "pictures": found.pictures,
                    "failed": dict(found.failed),
                    "out": str(target),
                }
            )
        )
    else:
        for name, value in found.means.items():
            print(f"{name:16} {value:.5f}")
        print(
            f"{found.pictures - len(found.failed)} of {found.pictures} pictures scored -> {target}"
        )
    failed = found.failed
    for name, reason in failed[:FAILURES]:
        print(f"align-gen: {name}: {reason}", file=sys.stderr)
    if len(failed) > FAILURES:
        print(
            f"align-gen: and {len(failed) - FAILURES} more; column 'error' of {target} has them all",
            file=sys.stderr,
        )
    if failed and strict:
        raise typer.Exit(1)


def _suite(
    name: str,
    root: Path,
    prompts: Path | None,
    specs: list[tuple[str, dict[str, Any]]],
    batch_size: int,
    as_json: bool,
) -> None:
    """Score a benchmark's pictures and print its table."""
    from .. import bundled
    from ..errors import user_mistakes
    from ..galleries.hpdv2 import run_hpdv2
    from ..progress import ProgressBar
    from ..reward_heads import reward_set

    if name != "hpdv2":
        raise UserError(f"--suite {name!r}: have ['hpdv2']")
    with user_mistakes():
        judges = reward_set(bundled.reward_spec(dict(specs))).to(device())
    with ProgressBar() as progress:
        table = run_hpdv2(root, prompts, judges, batch_size=batch_size, progress=progress)
    print(json.dumps(table.to_json()) if as_json else "\n".join(table.to_text()))


def pairs(
    source: Annotated[Path, typer.Argument(help="A scored gallery, or its scores file.")],
    out: Annotated[
        Path, typer.Option(help="The Parquet file to write; the datasets library reads it too.")
    ],
    by: Annotated[
        str,
        typer.Option(
            help="margin: widest first. best_worst: top against bottom. bradley_terry: drawn by their scores."
        ),
    ] = "margin",
    column: Annotated[
        str | None, typer.Option(help="The reward to choose by; without it all, standardised.")
    ] = None,
    min_margin: Annotated[float, typer.Option(help="Pairs must differ by more.")] = 0.0,
    per_prompt: Annotated[int | None, typer.Option(help="At most so many of a prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Of bradley_terry: 0 takes the best, a large one any.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of bradley_terry.")] = 0,
    as_json: Json = False,
) -> None:
    """Mine a preference dataset: pairs of pictures of one prompt, the better one chosen."""
    from ..galleries.mining import pairs as mine
    from ..galleries.pairs import write_pairs
    from ..galleries.table import ScoresTable

    table = ScoresTable.of(source)
    options = {
        "column": column,
        "min_margin": min_margin,
        "per_prompt": per_prompt,
        "temperature": temperature,
    }
    found = mine(table, by=by, seed=seed, **options)
    folder = source if source.is_dir() else table.folder
    if folder is None:
        raise UserError(f"{source}: its pictures are in no folder; want the scores of a gallery")
    write_pairs(out, found, folder)
    counts = {"pairs": len(found), "prompts": len({row["prompt"] for row in found})}
    counts |= {"ties": found.ties, "unreadable": found.unreadable}
    agreement = sum(row["agreement"] for row in found) / len(found)
    if as_json:
        print(json.dumps({**counts, "agreement": agreement, "out": str(out)}))
    else:
        print(f"{counts['pairs']} pairs of {counts['prompts']} prompts -> {out}")
        print(
            f"heads agree with {agreement:.1%}; left out: {found.ties} ties, {found.unreadable} unreadable pictures"
        )


def train_reward(
    source: Annotated[
        Path,
        typer.Argument(help="Pairs: Parquet as `align-gen pairs` writes, or a folder of them."),
    ],
    base: Annotated[
        str,
        typer.Option(
            help="The CLIP to begin with: a bundled name, an open_clip folder, a hub name."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    mode: Annotated[
        str,
        typer.Option(
            help="lora: the whole CLIP learns, as HPS. frozen: a small head on its features."
        ),
    ] = "lora",
    dimension: Annotated[
        list[str] | None, typer.Option(help="Of frozen; several may be given.")
    ] = None,
    loss: Annotated[str, typer.Option(help="bt: Bradley-Terry. btt: with ties.")] = "bt",
    label_smoothing: Annotated[str, typer.Option(help="A share from 0 to 0.5, or votes.")] = "0",
    margin: Annotated[
        str | None, typer.Option(help="The column with the lead that the better one should have.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Of lora.")] = 8,
    hidden: Annotated[
        int, typer.Option(help="Of frozen: width of its hidden layer, 0 for none.")
    ] = 0,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at a time.")] = 32,
    lr: Annotated[float | None, typer.Option(help="The mode's own without it.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Of an architecture as --base: open_clip's tag, or a file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, order and initial weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a reward on preference pairs; prints how often it is right on prompts it never saw."""
    from ..progress import ProgressBar
    from ..reward_training.train import train_reward as train

    smoothing: Any = label_smoothing
    if label_smoothing != "votes":
        try:
            smoothing = float(label_smoothing)
        except ValueError:
            raise UserError(
                f"--label-smoothing {label_smoothing!r}: want a share from 0 to 0.5, or votes"
            ) from None
    with ProgressBar() as progress:
        measured = train(
            source,
            base,
            out,
            mode=mode,
            dimensions=tuple(dimension or ("overall",)),
            loss=loss,
            label_smoothing=smoothing,
            margin=margin,
            rank=rank,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            pretrained=pretrained,
            seed=seed,
            device=str(device()),
            progress=progress,
        )
    if as_json:
        print(json.dumps(measured))
        return
    print(f"{'held-out pairs':24} {'without ties':>12} {'with ties':>10} {'calibration error':>18}")
    for which in ("base", "trained"):
        for name, figures in measured[which].items():
            keys = ("accuracy", "accuracy with ties", "calibration error")
            told = ("none" if figures[key] is None else f"{figures[key]:.3f}" for key in keys)
            print("{:24} {:>12} {:>10} {:>18}".format(f"{which} {name}", *told))
    print(
        f"{measured['held-out pairs']} pairs of {measured['held-out prompts']} prompts held out -> {out}"
    )


EXAMPLES: dict[Callable[..., None], str] = {
    score: "align-gen score galleries/base --reward jpeg_size --reward clip:path=emoji-clip",
    pairs: "align-gen pairs galleries/base --by best_worst --out pairs.parquet",
    train_reward: "align-gen train-reward pairs.parquet --base emoji-clip --out rewards/mine",
}
