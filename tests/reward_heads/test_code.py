"""Where a recipe's rewards name code, and what of the code they name is accepted."""

from pathlib import Path
from typing import Any, get_type_hints

import pytest

from align_gen.commands.arguments import parse_reward
from align_gen.reward_heads import RewardHead, load
from align_gen.reward_heads.code import code_in, is_code, text_names_code
from align_gen.reward_heads.registry import HEADS, head_class

# A specification, and where it names code.
SPECS: dict[str, tuple[dict[Any, Any], dict[str, str]]] = {
    "of the table": ({"clip": {"path": "a:b"}, "mean_hue": 1.0}, {}),
    "a goal with a colon": ({"clip": {"goal": ["like this: red"], "baseline": "x:y"}}, {}),
    "a key": ({"my.py:f": 1.0}, {"my.py:f": "my.py:f"}),
    "a key with options": ({"pkg.mod:f": {"weight": 2}}, {"pkg.mod:f": "pkg.mod:f"}),
    "a name": ({"x": {"name": "subprocess:Popen", "args": []}}, {"x.name": "subprocess:Popen"}),
    "a name over a key": ({"my.py:f": {"name": "mean_hue"}}, {}),
    "a weight of nothing": ({"x": {"name": "my.py:f", "weight": 0}}, {"x.name": "my.py:f"}),
    "in views": ({"views": {"head": "my.py:f"}}, {"views.head": "my.py:f"}),
    "in views by a label": ({"v": {"name": "views", "head": "m:f"}}, {"v.head": "m:f"}),
    "in views of an ensemble": (
        {"views": {"head": "ensemble", "members": ["colour", "my.py:f"]}},
        {"views.head.members.1": "my.py:f", "views.members.1": "my.py:f"},
    ),
    "in members of members": (
        {"e": {"name": "ensemble", "members": [{"name": "segments", "head": "a:b"}, "c:d"]}},
        {"e.members.0.head": "a:b", "e.members.1": "c:d"},
    ),
    "a file of weights": ({"aesthetic": {"head": "C:/weights.pth"}}, {}),
    "nothing that is a name": ({3: None, "x": {"name": ["a:b"]}, None: {"members": "a:b"}}, {}),
}


@pytest.mark.parametrize("case", SPECS)
def test_every_name_of_code_is_found(case: str) -> None:
    spec, expected = SPECS[case]
    assert dict(code_in(spec)) == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mean_hue", False),
        ("mean_hue:hue=120", False),
        ("red=mean_hue:hue=120", False),
        ("clip:path=emoji-clip,goal='like this: red'", False),
        ("a=clip:path=a=b", False),
        ("my.py:f", True),
        ("x=my.py:f", True),
        ("x=subprocess:Popen:args=[touch, x]", True),
        ("views:head=my.py:f", True),
        ("e=ensemble:members=[colour, {name: 'os:system'}]", True),
        ("views:head=clip,path=emoji-clip", False),
        ("nothing:x=1", False),
        ("my.py:x:y=1", True),
    ],
)
def test_the_command_lines_spelling(text: str, code: bool) -> None:
    assert text_names_code(text) == code
    label, options = parse_reward(text)
    assert code == bool([*code_in({label: options})])


def test_every_option_that_takes_a_head_is_looked_at() -> None:
    """Read off the constructors: a new wrapper with another option would be missed."""
    taking = {
        (name, option)
        for name in HEADS
        for option, kind in get_type_hints(head_class(name).__init__).items()
        if RewardHead.__name__ in str(kind)
    }
    assert {option for _, option in taking} == {"head", "members"}
    assert all(HEADS[name].startswith("wrappers.") for name, _ in taking)
    for name, option in taking:
        value = ["my.py:f"] if option == "members" else "my.py:f"
        assert [found for _, found in code_in({name: {option: value}})] == ["my.py:f"]


def test_no_name_of_the_table_looks_like_code() -> None:
    assert HEADS and not any(map(is_code, HEADS))


FILE = """\
import functools, os, subprocess
from pathlib import Path
from subprocess import run

class Plain:
    def __init__(self, path="{mark}"):
        Path(path).touch()
    def __call__(self, media, prompts):
        return media.mean((1, 2, 3))

def nothing(path="x"):
    return 3
system = os.system
touch = Path("{mark}").touch
part = functools.partial(subprocess.run, ["touch", "{mark}"])
thing = object.__new__(Plain)
"""


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("subprocess:Popen", {"args": ["touch", "{mark}"]}, "the class Popen"),
        ("subprocess:run", {"args": ["touch", "{mark}"]}, "a function of Python's own library"),
        ("subprocess:check_call", {"args": ["touch", "{mark}"]}, "a function of Python's own"),
        ("os:system", {"command": "touch {mark}"}, "a builtin_function_or_method"),
        ("os:popen", {"cmd": "touch {mark}"}, "a function of Python's own library"),
        ("builtins:exec", {"source": "open('{mark}', 'w')"}, "a builtin_function_or_method"),
        ("builtins:open", {"file": "{mark}", "mode": "w"}, "a "),
        ("{file}:run", {"args": ["touch", "{mark}"]}, "a function of Python's own library"),
        ("{file}:Plain", {"path": "{mark}"}, "the class Plain"),
        ("{file}:Plain", {}, "the class Plain"),
        ("{file}:system", {"command": "touch {mark}"}, "a builtin_function_or_method"),
        ("{file}:touch", {}, "a method"),
        ("{file}:touch", {"mode": 384}, "a method"),
        ("{file}:part", {}, "a partial"),
        ("{file}:thing", {}, "a Plain"),
        ("{file}:Path", {}, "the class Path"),
        ("torch:float32", {}, "a dtype"),
        ("align_gen.reward_heads:RewardHead", {}, "the class RewardHead"),
    ],
)
def test_what_is_no_reward_is_refused_before_it_is_called(
    tmp_path: Path, name: str, options: dict[str, Any], found: str
) -> None:
    mark, file = tmp_path / "sprung", tmp_path / "mine.py"
    file.write_text(FILE.format(mark=mark))
    filled = {
        key: [each.format(mark=mark) for each in value]
        if isinstance(value, list)
        else value.format(mark=mark)
        if isinstance(value, str)
        else value
        for key, value in options.items()
    }
    with pytest.raises(ValueError, match=f"is {found}.*; want a function .*RewardHead") as error:
        load(name.format(file=file), **filled)
    assert "\n" not in str(error.value) and not mark.exists()


def test_a_function_that_makes_no_reward_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    with pytest.raises(ValueError, match="with options it made a int; want a reward"):
        load(f"{tmp_path}/mine.py:nothing", path="y")


@pytest.mark.parametrize(
    ("text", "said"),
    [("def f(:\n", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("exit(3)", "SystemExit: 3")],
)
def test_a_file_that_cannot_run_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"reward '.*mine.py:f': cannot import .*{said}") as error:
        load(f"{tmp_path}/mine.py:f")
    assert "\n" not in str(error.value)
