"""`align-gen train-reward`: a reward model from preference pairs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from .arguments import Json, count_of, default_device
from .tables import Column, print_table

EXAMPLE = "align-gen train-reward pairs.parquet --base emoji-clip --out rewards/mine"
COLUMNS = (
    Column("held-out pairs", width=24),
    Column("without ties", ".3f"),
    Column("with ties", ".3f", 10),
    Column("calibration error", ".3f"),
)
FIGURES = ("accuracy", "accuracy with ties", "calibration error")


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
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at a time.")] = 32,
    lr: Annotated[float | None, typer.Option(help="The mode's default without it.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Of an architecture as --base: open_clip's tag, or a file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, order and initial weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a reward on preference pairs, and measure it on prompts that were held out."""
    smoothing = _smoothing(label_smoothing)

    # Imported here, as everywhere in commands: --help must not wait for torch.
    from ..progress import ProgressBar
    from ..reward_training import train_reward as train

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
            device=str(default_device()),
            progress=progress,
        )
    if as_json:
        print(json.dumps(measured))
        return
    # The base first: what training changed is the difference of the rows.
    rows = []
    for which in ("base", "trained"):
        for name, figures in measured[which].items():
            cells = ["none" if figures[key] is None else figures[key] for key in FIGURES]
            rows.append((f"{which} {name}", *cells))
    print_table(COLUMNS, rows)
    held_out = count_of(measured["held-out pairs"], "pair")
    print(f"{held_out} of {count_of(measured['held-out prompts'], 'prompt')} held out -> {out}")


def _smoothing(text: str) -> Any:
    """A share, or the word ``votes``."""
    if text == "votes":
        return text
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--label-smoothing {text!r}: want a share from 0 to 0.5, or votes"
        ) from None
