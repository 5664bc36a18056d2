"""What a caption may say of a picture, and all sentences that captions are made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
TRAINED_STYLES = ("3d", "flat", "noto")
HELD_OUT_STYLE = "twemoji"

# Captions; {} is the thing. The reward's goal ("a glossy 3d emoji") and baseline ("a flat icon")
# are style-only ones.
PLAIN = ("{}", "an emoji of {}", "a picture of {}", "a drawing of {}", "the emoji for {}")
STYLED = {
    "3d": (
        "a 3d emoji of {}",
        "a glossy 3d emoji of {}",
        "{}, 3d",
        "a 3d render of {}",
        "glossy 3d emoji: {}",
    ),
    "flat": (
        "a flat icon of {}",
        "flat icon: {}",
        "{}, flat",
        "a flat emoji of {}",
        "a simple flat icon of {}",
    ),
    "noto": (
        "a noto emoji of {}",
        "noto: {}",
        "{}, noto",
        "a soft noto picture of {}",
        "a drawn noto emoji of {}",
    ),
}
STYLE_ONLY = {
    "3d": ("a glossy 3d emoji", "a 3d emoji", "a 3d render"),
    "flat": ("a flat icon", "a flat emoji", "a simple flat icon"),
    "noto": ("a noto emoji", "a soft noto picture", "a drawn noto emoji"),
}
# The held-out model reads other sentences, and the generator never sees these plain ones.
HELD_OUT_PLAIN = ("one {}", "{} on white", "a small sign that shows {}", "a nice {}")
HELD_OUT_STYLED = {
    "3d": ("{} as a glossy 3d emoji", "shiny 3d {}", "{}, a glossy render", "3d emoji showing {}"),
    "flat": ("{} as a flat icon", "flat {}", "{}, a simple icon", "flat icon showing {}"),
    "noto": ("{} as a noto emoji", "noto {}", "{}, a soft picture", "noto emoji showing {}"),
}


@dataclass
class Caption:
    text: str
    thing: str | None  # what the caption says of the picture; None: it does not say
    style: str | None


def caption(
    row: Row, rng: np.random.Generator, held_out: bool = False, bare_style: float = 0.1
) -> Caption:
    """A random true sentence about a picture; a share ``bare_style`` name its style alone."""
    style = row["style"]
    thing = row["thing"]
    plain, styled = (HELD_OUT_PLAIN, HELD_OUT_STYLED) if held_out else (PLAIN, STYLED)
    if rng.random() < bare_style:
        return Caption(rng.choice(STYLE_ONLY[style]), None, style)
    words = thing
    if row["tags"] and rng.random() < 0.25:
        tags = rng.permutation(row["tags"])[:2]
        words = f"{thing}, {', '.join(tags)}"
    if rng.random() < 0.35:
        return Caption(rng.choice(plain).format(words), thing, None)
    return Caption(rng.choice(styled[style]).format(words), thing, style)


def every_sentence(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        words = ", ".join([row["thing"], *row["tags"]])
        for templates in (
            PLAIN,
            HELD_OUT_PLAIN,
            STYLED[row["style"]],
            HELD_OUT_STYLED[row["style"]],
        ):
            yield from (template.format(words) for template in templates)
        yield from STYLE_ONLY[row["style"]]
