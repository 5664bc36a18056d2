"""Options as rows of a table, of recipes, methods and reward heads.

Recipe keys and options of methods are read off their pydantic models.
"""

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

FLOW: dict[str, Any] = {
    "default_flow_style": True,
    "allow_unicode": True,
    "sort_keys": False,
    "width": math.inf,
}
REQUIRED = "required"  # in place of a default
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


@dataclass(frozen=True)
class Option:
    """One option: every field is text that can be printed, empty where there is nothing to say."""

    name: str
    type: str
    default: str  # as YAML has it; "required" where there is none
    bounds: str
    unit: str
    description: str

    def json(self) -> dict[str, str]:
        return asdict(self)


def options_of_model(model: type[BaseModel]) -> list[Option]:
    """The fields of a pydantic model, in its order."""
    return [_option(name, field) for name, field in model.model_fields.items()]


def options_of_reward(name: str) -> list[Option]:
    """The options of a reward head of the registry.

    Raises:
        UserError: no such head; the message lists those that exist.
    """
    from ..errors import UserError
    from ..reward_heads.options import options_of
    from ..reward_heads.registry import HEADS

    if name not in HEADS:
        raise UserError(f"no reward {name!r}; have {sorted(HEADS)}")
    rows = []
    for option in options_of(name):
        default = REQUIRED if option.required else yaml_of(option.default)
        # Docstrings speak Python; recipes, where these options are written, have null.
        description = option.description.replace("None: ", "null: ").replace("``", "")
        rows.append(Option(option.name, option.type, default, "", "", description))
    return rows


def description_of(model: type[BaseModel], name: str) -> str:
    """What a field says of itself, or the headline of the model that it holds."""
    field = model.model_fields[name]
    section = model_in(field.annotation)
    text = field.description or (inspect.getdoc(section) if section else "") or ""
    return " ".join(text.split("\n\n")[0].split())


def sections_of(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The fields of a model that are models themselves, by name."""
    for name, field in model.model_fields.items():
        section = model_in(field.annotation)
        if section is not None:
            yield name, section


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that an annotation names, alone or in a union."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def yaml_of(value: Any) -> str:
    """A value as a recipe spells it, on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    # YAML's safe writer knows no tuples.
    plain = json.loads(json.dumps(value, default=str))  # tuples as lists
    text = yaml.safe_dump(plain, **FLOW)
    return text.removesuffix("...\n").strip()


def _option(name: str, field: FieldInfo) -> Option:
    extra = field.json_schema_extra
    unit = extra.get("unit", "") if isinstance(extra, dict) else ""
    return Option(
        name,
        type_of(field.annotation),
        default_of(field),
        bounds_of(field),
        str(unit or ""),
        " ".join((field.description or "").split()),
    )


def default_of(field: FieldInfo) -> str:
    """A field's default as YAML, or "required"."""
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    return REQUIRED if value is PydanticUndefined else yaml_of(value)


def bounds_of(field: FieldInfo) -> str:
    """A field's least and greatest value: "≥ 0, < 1"."""
    parts = []
    # Which classes hold the bounds depends on pydantic's version; their attributes do not.
    for constraint in field.metadata:
        for attribute, sign in BOUNDS.items():
            limit = getattr(constraint, attribute, None)
            if limit is not None:
                parts.append(f"{sign} {limit:g}")
    return ", ".join(parts)


def type_of(annotation: Any) -> str:
    """An annotation in words: "number or null", "list of whole numbers", "adam | sgd"."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if annotation is NoneType:
        return "null"
    if annotation in NAMES:
        return NAMES[annotation]
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(type_of(part) for part in arguments)
    if origin in (list, tuple, Sequence):
        return f"list of {type_of(arguments[0])}s".replace("texts", "text")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return "any"
