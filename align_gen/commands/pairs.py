"""`align-gen pairs`: a preference dataset out of scores."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, printable
from .arguments import Json, count_of

EXAMPLE = "align-gen pairs galleries/base --by best_worst --out pairs.parquet"


def pairs(
    source: Annotated[Path, typer.Argument(help="A scored gallery, or its scores file.")],
    out: Annotated[
        Path, typer.Option(help="The Parquet file to write; the datasets library reads it too.")
    ],
    by: Annotated[
        str,
        typer.Option(
            help="margin: widest first. best_worst: top against bottom. "
            "bradley_terry: drawn by their scores."
        ),
    ] = "margin",
    column: Annotated[
        str | None, typer.Option(help="The reward to choose by; without it all, standardised.")
    ] = None,
    min_margin: Annotated[float, typer.Option(help="Pairs must differ by more.")] = 0.0,
    per_prompt: Annotated[int | None, typer.Option(help="At most so many of a prompt.")] = None,
    temperature: Annotated[
        float,
        typer.Option(help="Of bradley_terry, above 0: near 0 takes the best, a large one any."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of bradley_terry.")] = 0,
    as_json: Json = False,
) -> None:
    """Mine a preference dataset: pairs of pictures of one prompt, the better one chosen."""
    from ..galleries.folders import followed_folder
    from ..galleries.mining import pairs as mine
    from ..galleries.pairs import write_pairs
    from ..galleries.table import ScoresTable

    table = ScoresTable.of(source)
    mined = mine(
        table,
        by=by,  # type: ignore[arg-type]
        seed=seed,
        column=column,
        min_margin=min_margin,
        per_prompt=per_prompt,
        temperature=temperature,
    )
    # Pairs name their pictures by path, so these must lie somewhere.
    folder = source if source.is_dir() else followed_folder(source, table)
    if folder is None:
        raise UserError(f"{source}: its pictures are in no folder below its own; want the gallery")
    write_pairs(out, mined, folder)

    # How far the heads agree is the first hint of whether the pairs are worth learning from.
    prompts = len({row["prompt"] for row in mined})
    agreement = sum(row["agreement"] for row in mined) / len(mined)
    counts = {"pairs": len(mined), "prompts": prompts}
    counts |= {"ties": mined.ties, "unreadable": mined.unreadable}
    if as_json:
        print(json.dumps({**counts, "agreement": agreement, "out": str(out)}))
        return
    print(f"{count_of(len(mined), 'pair')} of {count_of(prompts, 'prompt')} -> {printable(out)}")
    left_out = f"{count_of(mined.ties, 'tie')}, {count_of(mined.unreadable, 'unreadable picture')}"
    print(f"heads agree with {agreement:.1%}; left out: {left_out}")
