"""How a recipe's rewards combine: the section ``combine``, and scales from a reference gallery."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ..errors import UserError
from ..galleries.columns import plain
from ..galleries.table import ScoresTable, differing_keys
from ..reward_heads import RewardSet
from ..reward_heads.combine import Combination, Rule, Scale
from ..strict import Strict


class Combine(Strict):
    """How several rewards become the one that is optimised, see ``reward_heads.combine``."""

    rule: Rule = Field("sum", description="From the rewards, each times its weight, to one.")
    k: float = Field(
        1.0, ge=0, description="Of mean_minus_std: standard deviations that are taken off."
    )
    temperature: float = Field(
        1.0, gt=0, description="Of soft_min: the smaller, the nearer to the minimum."
    )
    normalise: Literal["none", "group"] = Field(
        "none",
        description="group: every reward counts alike among the images of a prompt.",
    )
    gates: Mapping[str, float] = Field(
        {}, description="Reward to its least score; the others count only where all are met."
    )
    floor: float = Field(0.0, description="What the others count where a gate is not met.")
    calibrate: str | None = Field(
        None,
        description="A scored reference gallery, or its scores file, that sets each reward's "
        "scale.",
    )


def combination(section: Combine, rewards: RewardSet) -> Combination:
    """The rule for these rewards.

    Raises:
        UserError: it does not fit them, or the reference was scored by others.
    """
    scales = None if section.calibrate is None else scales_of(section.calibrate, rewards)
    options = section.model_dump(exclude={"calibrate"})
    try:
        return Combination(rewards.weights, **options, scales=scales)
    except ValueError as error:
        raise UserError(str(error)) from error


def scales_of(reference: str, rewards: RewardSet) -> dict[str, Scale]:
    """Each reward's scale on a scored gallery.

    Its scores must be of the same weights, preprocessing and options; UserError else.
    """
    table = ScoresTable.of(reference)
    prompts = [str(row.get("prompt", "")) for row in table.rows]
    scales = {}
    for name, head in rewards.heads.items():
        if name not in table.heads:
            raise UserError(f"{reference}: has no scores of {name!r}; it has {sorted(table.heads)}")
        mine = plain(head.provenance())
        theirs = table.provenance[name]
        if different := sorted(differing_keys(mine, theirs)):
            raise UserError(
                f"{reference}: {name!r} was scored with another {different[0]}; score it again"
            )
        known = [
            (value, prompt)
            for value, prompt in zip(table.heads[name], prompts, strict=True)
            if value is not None
        ]
        try:
            scales[name] = Scale.of([value for value, _ in known], [prompt for _, prompt in known])
        except ValueError as error:
            raise UserError(f"{reference}: {name!r}: {error}") from error
    return scales
