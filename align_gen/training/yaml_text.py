"""YAML into plain data and checked models, with one-line complaints; and back."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UserError, one_line
from ..reward_heads.base import label

FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$")


class YamlLoader(yaml.SafeLoader):
    """YAML 1.2's floats: 1e-4 is a number. Duplicate keys and aliases are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        # A few lines of aliases can stand for more than any memory.
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"key {sorted(twice)[0]!r} stands twice")
        return super().construct_mapping(node, deep)


YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML.

    Raises:
        UserError: ``source`` is no YAML; says where.
    """
    try:
        return yaml.load(text, YamlLoader)
    # ValueError: bytes that are no text, and huge integers.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not YAML: {one_line(error)}") from error


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one key, ``section.key=value``, the value read as YAML.

    Raises:
        UserError: it has another form, or its section is no section.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: want section.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: {parent} is no section")
    try:
        data[last] = yaml.load(value, YamlLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {override}: {value!r} is not YAML") from error


def validate(model: type[Any], data: Any, source: str, prefix: str = "") -> Any:
    """Validate plain data; the first complaint becomes one line.

    An unknown key comes first: what is missing beside it is often its right spelling.

    Raises:
        UserError: names the key, what is accepted, and the nearest known key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complaints = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        first = complaints[0]
        key = prefix + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key {key}; {_hint(model, first)}") from None
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        got = "" if first["type"] == "missing" else f", got {reprlib.repr(first['input'])}"
        raise UserError(f"{source}: {key}: {first['msg'].lower()}{got}{more}") from None


def yaml_diff(mine: str, theirs: str) -> str:
    """The lines in which two recipes differ, short enough for one message."""
    lines = difflib.unified_diff(theirs.splitlines(), mine.splitlines(), lineterm="", n=0)
    changed = [
        line.replace("  ", "")
        for line in lines
        if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]
    return "; ".join(changed[:6]) + (" …" if len(changed) > 6 else "")


def with_names(value: Any) -> Any:
    """Plain data with callables by their name, so that it can be written down."""
    if isinstance(value, Mapping):
        return {with_names(key): with_names(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_names(item) for item in value]
    return label(value) if callable(value) else value


def leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a model, as (name, dotted path)."""
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        if nested is None:
            yield name, prefix + name
        else:
            yield from leaves(nested, f"{prefix}{name}.")


def _hint(model: Any, complaint: Any) -> str:
    """What may have been meant by an unknown key."""
    location = complaint["loc"]
    word = str(location[-1])
    known = _known_keys(model, location[:-1])

    def nearest(likeness: float) -> list[str]:
        return difflib.get_close_matches(word, known, n=1, cutoff=likeness)

    # The right key in a wrong section, or in none: training.steps, or steps alone.
    inside = complaint["input"]
    words = [*inside] if isinstance(inside, Mapping) else [word]
    elsewhere = [path for name, path in leaves(model) if name in words and path != word]

    # A slip of the fingers is likelier than a wrong section, and that likelier than another word.
    near = nearest(0.75) or elsewhere[:1] or nearest(0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {known}"


def _known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    """The keys of the section at a location."""
    for part in location:
        field = model.model_fields.get(part)
        model = (None if field is None else _nested(field.annotation)) or model
    return sorted(model.model_fields)


def _nested(annotation: Any) -> Any:
    """The model among the alternatives of an annotation, or None."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    models = (each for each in options if isinstance(each, type) and issubclass(each, BaseModel))
    return next(models, None)
