"""What commands have in common: options, rewards by their text, the device."""

import re
from typing import Annotated, Any

import typer

from ..errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def parse_reward(text: str) -> tuple[str, dict[str, Any]]:
    """Read [LABEL=]NAME[:key=value,…] as (label, options with "name"); values are YAML, lists in
    brackets.
    """
    import yaml

    from ..training.yaml_text import YamlLoader

    match = re.fullmatch(
        r"(?:(?P<label>[\w-]+)=)?(?P<name>[^=]+?)(?::(?P<options>\w+=.*))?", text, re.DOTALL
    )
    if match is None:
        raise UserError(f"--reward {text!r}: want [LABEL=]NAME[:key=value,…]")
    name = match["name"]
    options = match["options"] or ""
    try:
        parsed = yaml.load("{" + re.sub(r"(^|,)\s*(\w+)=", r"\1 \2: ", options) + "}", YamlLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--reward {text!r}: options want key=value,key=[a, b]") from error
    return match["label"] or name, {"name": name, **parsed}


def device() -> Any:
    """Where single commands run; `finetune` asks accelerate."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
