"""`align-gen check`: whether a model's adapter reproduces diffusers, law by law."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .arguments import Attention, Dtype, Json, Kernel, default_device, parse_rewards
from .tables import Column, print_table

if TYPE_CHECKING:
    from ..check import Finding

EXAMPLE = "align-gen check emoji-sd --reward clip:path=emoji-clip"
COLUMNS = (Column("", width=6), Column("law"), Column("measured", ".3g"), Column("limit"))


def check(
    model: Annotated[
        str, typer.Argument(help="A bundled model, a pipeline folder, or a hub name.")
    ],
    reward: Annotated[
        list[str] | None, typer.Option(help="Rewards whose gradient to look at.")
    ] = None,
    dtype: Dtype = "fp32",
    height: Annotated[
        int | None, typer.Option(help="Height of the pictures; the family's default without it.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Width of the pictures; the family's default without it.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of a video; the family's default without it.")
    ] = None,
    attention: Attention = Kernel.auto,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights cannot denoise.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare a model's adapter with diffusers, law by law; exit 1 when a law does not hold."""
    from .. import bundled
    from ..check import Subject
    from ..check import check as run_check
    from ..errors import user_mistakes
    from ..opening import open_model, open_rewards
    from ..pipelines.registry import TOYS

    # Half of the laws compare with the pipeline's own call.
    if model in TOYS:
        raise UserError(
            f"check {model}: a toy has no diffusers pipeline to be compared with; "
            f"want one of {bundled.generators()}, a pipeline folder, or a hub name"
        )
    with user_mistakes():
        device = default_device()
        # The rewards first: a mistake in them shows before a large model is loaded.
        rewards = open_rewards(parse_rewards(reward)) if reward else None
        opened = open_model(model, dtype=dtype, attention=attention.value, device=device)
        if rewards is not None:
            rewards.to(device)
        subject = Subject.of(opened, height=height, width=width, num_frames=frames, rewards=rewards)
    # Outside of the block above: an error of the model itself is a finding, not the user's mistake.
    findings = run_check(subject, untrained=untrained)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        print_table(COLUMNS, [_row(finding) for finding in findings])
        _print_legend(untrained)
    if not all(finding.passed for finding in findings):
        raise typer.Exit(1)


def _row(finding: "Finding") -> tuple[Any, ...]:
    verdict = "ok" if finding.passed else "FAILED"
    return verdict, finding.name, finding.figure, finding.bound


def _print_legend(untrained: bool) -> None:
    """Print what each law that was measured means."""
    from ..check import MEANING

    print()
    for name, meaning in MEANING.items():
        if not (untrained and name == "denoises"):
            print(f"{name}: {meaning}")
