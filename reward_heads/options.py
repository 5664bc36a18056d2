"""The options of a head: read from its constructor and docstring, checked before it loads."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .base import RewardHead
from .registry import head_class

# Strict: true is no number, and "240" is none either.
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
WORDS: dict[Any, str] = {
    Any: "anything",
    NoneType: "null",
    RewardHead: "a head",
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
}


@dataclass(frozen=True)
class Option:
    """One option of a head.

    Attributes:
        type: in words, as "a number".
        default: None where the option is ``required``.
        description: what it does, with its unit or range, in one line.
    """

    name: str
    type: str
    default: Any
    required: bool
    description: str


def options_of(name: str) -> tuple[Option, ...]:
    """The options of a named head, in the order of its constructor.

    Options that a wrapper passes on to another head are not among them.

    Raises:
        ValueError: no such head.
    """
    head = head_class(name)
    types = get_type_hints(head.__init__)
    descriptions = _descriptions(head)
    options = []
    for key, parameter in _parameters(head).items():
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        about = descriptions.get(key, "")
        options.append(Option(key, in_words(types[key]), default, required, about))
    return tuple(options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check the options of a named head; nothing is loaded.

    Raises:
        ValueError: an option is missing, unknown or of another type; in one line, with what is
            accepted.
    """
    head = head_class(name)
    accepted = _parameters(head)
    try:
        inspect.signature(head).bind(**options)
    except TypeError as error:
        raise ValueError(f"reward {name!r}: {error}; options are {sorted(accepted)}") from None

    # Values are checked and not converted: a head gets what the user wrote.
    types = get_type_hints(head.__init__)
    known = {option.name: option for option in options_of(name)}
    for key, value in options.items():
        if key not in known:  # another head's, which a wrapper passes on
            continue
        try:
            TypeAdapter(types[key], config=STRICT).validate_python(value)
        except ValidationError:
            option = known[key]
            about = re.split(r"[.;] ", option.description)[0].rstrip(".")
            raise ValueError(
                f"reward {name!r}: {key}: want {option.type} ({about}), got {value!r}"
            ) from None


def in_words(annotation: Any) -> str:
    """A type as a sentence names it: ``float | None`` is "a number or null"."""
    if annotation in WORDS:
        return WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join([", ".join(map(str, inner[:-1])), str(inner[-1])])
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, inner))
    if origin is Sequence:
        return f"a list (each {in_words(inner[0])})"
    if origin is Mapping:
        return f"a mapping (to {in_words(inner[1])})"
    raise TypeError(f"an option has the type {annotation}, which has no words")


def _parameters(head: Any) -> dict[str, inspect.Parameter]:
    """Parameters of a head's constructor, but for ``**options``, which are another head's."""
    parameters = inspect.signature(head).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def _descriptions(head: Any) -> dict[str, str]:
    """Lines of the ``Args:`` blocks of a class and its bases; the class's own count."""
    descriptions: dict[str, str] = {}
    for base in reversed(head.__mro__):
        # From "Args:" to the next line without an indent, entries are "    name: text".
        _, _, block = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Args:\n")
        block = re.split(r"\n(?=\S)", block)[0]
        for match in re.finditer(r"^    (\w+): (.*(?:\n {8}.*)*)", block, re.MULTILINE):
            descriptions[match[1]] = " ".join(match[2].split())
    return descriptions
