"""Hashes of rewards that are code: scores of an edited reward are not scores of the same one."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from .backbones.weights import sha256_of as weights_sha256

SIMPLE = (type(None), bool, int, float, complex, str, bytes, PurePath)
# Values that hold others and are written down with them.
HOLDERS = (list, tuple, set, frozenset, dict)


def file_sha256(content: bytes) -> str:
    """The hash of a file of code."""
    return sha256(content).hexdigest()


def source_sha256(thing: Any) -> str:
    """The hash of a callable, a head or a class: of its source and of what it was given.

    A function counts with its defaults, the values and functions of its own module that it uses,
    and what it closes over; a partial with its arguments; an object with its class and its plain
    attributes; tensors and networks with their numbers. A function without source, as one of the
    console's, counts by its compiled code.
    """
    digest = sha256()
    for part in _parts(thing, {}, _home(thing)):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _home(thing: Any) -> str:
    """The package or script that a callable was written in."""
    inner = thing.func if isinstance(thing, functools.partial) else thing
    module = getattr(inner, "__module__", None) or type(inner).__module__
    return str(module).partition(".")[0]


def _parts(value: Any, seen: dict[int, Any], home: str) -> Iterator[str]:
    """What decides a value, as texts."""
    if isinstance(value, SIMPLE):
        yield f"{type(value).__name__} {value!r}"
        return
    # Once each; the object is kept, so that no other one can take its number.
    if id(value) in seen:
        return
    seen[id(value)] = value

    if isinstance(value, set | frozenset):
        # In an order of their own: a set has another one in each process.
        yield from ("set", *sorted(repr(item) for item in value if isinstance(item, SIMPLE)))
    elif isinstance(value, HOLDERS):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield f"{key!r}:"
            yield from _parts(item, seen, home)
    elif isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {weights_sha256({'': value})}"
    elif isinstance(value, FunctionType):
        yield from _function(value, seen, home)
    elif isinstance(value, MethodType):
        yield from _parts(value.__func__, seen, home)
        yield from _parts(value.__self__, seen, home)
    elif isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], seen, home)
    elif isinstance(value, type):
        yield from _class(value, seen, home)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{value.__module__}.{value.__qualname__}"  # a builtin
    else:
        yield from _class(type(value), seen, home)
        plain = {key: item for key, item in _attributes(value) if _is_plain(item)}
        if isinstance(value, nn.Module):
            plain = {**plain, "training": None, "weights": weights_sha256(value.state_dict())}
        yield from _parts(plain, seen, home)


def _function(function: FunctionType, seen: dict[int, Any], home: str) -> Iterator[str]:
    """A function's source, and what it uses besides its arguments."""
    code = function.__code__
    # Two lambdas may stand in one line, which is the source of both.
    source = None if function.__name__ == "<lambda>" else _source(function)
    yield from _compiled(code) if source is None else [source]
    yield from _parts([function.__defaults__, function.__kwdefaults__], seen, home)

    # Containers may be logs that grow as it is called, so of these only what cannot change.
    used = dict(zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True))
    names = {name: function.__globals__[name] for name in _names(code, function.__globals__)}
    for name, value in sorted({**names, **used}.items()):
        is_ours = isinstance(value, FunctionType | type) and _home(value) == home
        is_whole = isinstance(value, (*SIMPLE, Tensor, nn.Module))
        if is_whole or is_ours or (name in used and callable(value)):
            yield f"{name}:"
            yield from _parts(value, seen, home)


def _class(kind: type, seen: dict[int, Any], home: str) -> Iterator[str]:
    """A class's methods and plain attributes, and those of its bases in the same package."""
    for base in kind.__mro__:
        yield f"{base.__module__}.{base.__qualname__}"
        if _home(base) != home:
            continue
        for name, member in sorted(vars(base).items()):
            inner = _unwrapped(member)
            is_method = isinstance(inner, FunctionType) and _home(inner) == home
            if is_method or (_is_plain(inner) and not name.startswith("__")):
                yield f"{name}:"
                yield from _parts(inner, seen, home)


def _unwrapped(member: Any) -> Any:
    """The function inside a property or a static, class or cached one."""
    for name in ("fget", "__func__", "func"):
        inner = getattr(member, name, None)
        if isinstance(inner, FunctionType):
            return inner
    return member


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from sorted(getattr(value, "__dict__", {}).items())
    slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    yield from ((name, getattr(value, name)) for name in sorted(names) if hasattr(value, name))


def _is_plain(value: Any) -> bool:
    """Whether a value is data all through, or a function."""
    if isinstance(value, HOLDERS):
        inside = [*value, *value.values()] if isinstance(value, Mapping) else value
        return all(map(_is_plain, inside))
    return isinstance(value, (*SIMPLE, FunctionType, Tensor))


def _names(code: CodeType, scope: Mapping[str, Any]) -> set[str]:
    """Names of the module that a function and the functions inside it use."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return {name for name in code.co_names if name in scope}.union(
        *(_names(each, scope) for each in inner)
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _source(thing: Callable[..., Any]) -> str | None:
    """The text of a function; None where there is none."""
    try:
        return inspect.getsource(thing)
    except Exception:  # a file that has changed since may not even be Python
        return None


def _compiled(code: CodeType) -> Iterator[str]:
    """Code without its source: its instructions, names and constants."""
    yield f"{sys.version_info[:2]} {code.co_code.hex()} {code.co_names}"
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _compiled(const)
        elif isinstance(const, frozenset):
            yield repr(sorted(map(repr, const)))
        else:
            yield repr(const)
