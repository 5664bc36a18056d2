"""What commands share: their common options, rewards as text, the device."""

import re
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ..errors import UserError
from ..precision import DtypeName, dtype_name

if TYPE_CHECKING:
    import torch

DEBUG = "--debug"  # taken out of the arguments by ``align_gen.cli.main``
DTYPES: tuple[str, ...] = get_args(DtypeName)


# An Enum, not a Literal: older versions of typer know no other kind of choice.
class Kernel(str, Enum):
    """Attention kernels by name, see ``pipelines.attention``."""

    auto = "auto"
    sdpa = "sdpa"
    math = "math"
    flash = "flash"
    efficient = "efficient"
    cudnn = "cudnn"
    xformers = "xformers"


def epilog(example: str) -> str:
    """The end of a command's help: an example, and the option that any command takes."""
    return f"Example: {example}\n\n{DEBUG} shows where an error comes from."


def parse_dtype(text: str) -> str:
    """The short name of a precision, in either spelling."""
    name = dtype_name(text)
    if name not in DTYPES:
        raise typer.BadParameter(f"{text!r}: want one of {', '.join(DTYPES)}")
    return name


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PairedOn = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        help="Columns by which pictures pair, with commas or given several times; "
        "prompt,seed without it.",
    ),
]
Attention = Annotated[Kernel, typer.Option(help="The kernel that computes attention.")]
Dtype = Annotated[
    str,
    typer.Option(parser=parse_dtype, metavar="|".join(DTYPES), help="Precision of the weights."),
]


def parse_reward(text: str) -> tuple[str, dict[str, Any]]:
    """Read [LABEL=]NAME[:key=value,…] as (label, options with "name").

    Values are YAML, lists in brackets.

    Raises:
        UserError: another form; the message shows the one that is wanted.
    """
    import yaml

    from ..training.yaml_text import YamlLoader

    # A label may stand before the name, and options after it; the name may have colons of its own.
    match = re.fullmatch(
        r"(?:(?P<label>[\w-]+)=)?(?P<name>[^=]+?)(?::(?P<options>\w+=.*))?", text, re.DOTALL
    )
    if match is None:
        raise UserError(f"--reward {text!r}: want [LABEL=]NAME[:key=value,…]")
    name = match["name"]
    _require_keys(text, name)
    options = match["options"] or ""
    # key=value,… becomes a flow mapping of YAML, so that values may be numbers, lists or texts.
    try:
        parsed = yaml.load("{" + re.sub(r"(^|,)\s*(\w+)=", r"\1 \2: ", options) + "}", YamlLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--reward {text!r}: options want key=value,key=[a, b]") from error
    return match["label"] or name, {"name": name, **parsed}


def _require_keys(text: str, name: str) -> None:
    """Refuse an option without its key, which would read as an attribute of a module."""
    head, colon, value = name.partition(":")
    # The registry takes seconds to import, and only a colon can be misread.
    if not colon:
        return
    from ..reward_heads.registry import HEADS

    if head in HEADS:
        raise UserError(
            f"--reward {text!r}: {value!r} has no key; want {head}:KEY={value} "
            f"(align-gen list reward {head} has the keys)"
        )


def parse_rewards(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rewards by label; UserError where two have the same."""
    rows = [parse_reward(text) for text in texts]
    labels = [label for label, _ in rows]
    if len(set(labels)) < len(labels):
        raise UserError(f"--reward: {labels} names one twice; give each a label: mine=clip:path=…")
    return dict(rows)


def columns_of(on: Sequence[str] | None) -> list[str]:
    """The columns of ``PairedOn``."""
    return [name.strip() for text in on or ["prompt,seed"] for name in text.split(",")]


def count_of(number: int, noun: str) -> str:
    """A number and its noun: 1 picture, 2 pictures."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def default_device() -> "torch.device":
    """Where single commands run; `finetune` asks accelerate."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
