"""Hashes of rewards that are code: equal for equal code, another for every edit that counts."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from align_gen.reward_heads import RewardHead, load, reward_set
from align_gen.reward_heads.source import source_sha256

MODULE = """\
import functools
import torch
from dataclasses import dataclass
from align_gen.reward_heads import RewardHead

SCALE = 2.0
CALLS = []

def helper(media):
    return media.mean((1, 2, 3))

def f(media, prompts, by=3.0):
    CALLS.append(1)
    return SCALE * helper(media) + by

def make(k):
    return lambda media, prompts: k * media.mean((1, 2, 3))

two = [lambda media, prompts: media.mean((1, 2, 3)), lambda media, prompts: media.amax((1, 2, 3))]

class Base:
    def scale(self):
        return 1.0

class Scorer(Base):
    offset = 0.0
    def __init__(self, words=("a", "b")):
        self.words = list(words)
    def __call__(self, media, prompts):
        return self.scale() * media.mean((1, 2, 3)) + self.offset

class Head(RewardHead):
    def __call__(self, media, prompts, **context):
        return 1.0 * media.mean((1, 2, 3))

@dataclass(frozen=True)
class Frozen(RewardHead):
    hue: float = 1.0
    def __call__(self, media, prompts, **context):
        return self.hue * media.mean((1, 2, 3))

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.layer.weight, 0.25)
        torch.nn.init.constant_(self.layer.bias, 0.0)
        self.register_buffer("centre", torch.tensor([0.75]))
    def forward(self, media, prompts):
        return self.layer(media.mean((1, 2, 3))[:, None])[:, 0]

def towards(direction):
    def score(media, prompts):
        return media.mean((2, 3)) @ direction
    return score

def by_network(network):
    return lambda media, prompts: network(media, prompts)

network = Network()
closed = by_network(Network())
along = towards(torch.tensor([1.0, 2.0, 4.0]))
fixed = functools.partial(f, by=torch.tensor(8.0))
wanted = make(7.0)
scorer = Scorer()
part = functools.partial(f, by=4.0)
bound = scorer.__call__
"""
THINGS = ("f", "wanted", "scorer", "part", "bound", "Scorer", "network", "closed", "along", "fixed")
# An edit, and the things that it changes.
EDITS = {
    "the function": ("SCALE * helper", "SCALE + helper", {"f", "part", "fixed"}),
    "a function that it calls": ("def helper(media):\n    return media", "def helper(media):\n"
                                 "    return 2 * media", {"f", "part", "fixed"}),
    "a number of its module": ("SCALE = 2.0", "SCALE = 2.5", {"f", "part", "fixed"}),
    "a default": ("by=3.0", "by=3.5", {"f", "part", "fixed"}),
    "what a partial fixes": ("by=4.0", "by=4.5", {"part"}),
    "what a lambda closes over": ("make(7.0)", "make(7.5)", {"wanted"}),
    "the lambda": ("k * media", "k + media", {"wanted"}),
    "a method": ("self.scale() *", "-self.scale() *", {"scorer", "bound", "Scorer"}),
    "a method of a base": ("return 1.0\n", "return 1.5\n", {"scorer", "bound", "Scorer"}),
    "an attribute of a class": ("offset = 0.0", "offset = 0.5", {"scorer", "bound", "Scorer"}),
    "an attribute of an object": ("scorer = Scorer()", "scorer = Scorer(['c'])",
                                  {"scorer", "bound"}),
    "weights of a network": ("weight, 0.25", "weight, 0.5", {"network", "closed"}),
    "a buffer of one": ("tensor([0.75])", "tensor([0.5])", {"network", "closed"}),
    "a tensor that is closed over": ("[1.0, 2.0, 4.0]", "[1.0, 2.0, 3.0]", {"along"}),
    "a tensor that a partial fixes": ("tensor(8.0)", "tensor(9.0)", {"fixed"}),
    "something else": ("SCALE = 2.0", "SCALE = 2.0\nOTHER = 5", set[str]()),
}  # fmt: skip


def module_of(text: str, folder: Path, console: bool) -> ModuleType:
    """The text as a module of its own: of a file, or without any source as in a console."""
    folder.mkdir(exist_ok=True)
    file = folder / "mine.py"
    file.write_text(text)
    module = ModuleType("mine")
    sys.modules["mine"] = module
    exec(compile(text, "<console>" if console else str(file), "exec"), vars(module))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("console", [False, True], ids=["file", "console"])
@pytest.mark.parametrize("case", EDITS)
def test_what_counts_changes_the_hash_and_nothing_else_does(
    tmp_path: Path, case: str, console: bool
) -> None:
    old, new, changed = EDITS[case]
    assert MODULE.count(old) == 1
    hashes = []
    for number, text in enumerate((MODULE, MODULE.replace(old, new))):
        module = module_of(text, tmp_path / str(number), console)
        hashes.append({name: source_sha256(getattr(module, name)) for name in THINGS})
    before, after = hashes
    assert {name for name in THINGS if before[name] != after[name]} == changed


def test_neither_training_mode_nor_place_changes_the_hash(tmp_path: Path) -> None:
    network = module_of(MODULE, tmp_path, console=False).network
    before = source_sha256(network)
    assert source_sha256(network.eval()) == source_sha256(network.train()) == before


def test_two_lambdas_of_one_line_differ(tmp_path: Path) -> None:
    first, second = module_of(MODULE, tmp_path, console=False).two
    assert source_sha256(first) != source_sha256(second)


def test_a_call_does_not_change_the_hash(tmp_path: Path) -> None:
    """A log that grows is no part of a reward."""
    import torch

    module = module_of(MODULE, tmp_path, console=False)
    before = source_sha256(module.f)
    module.f(torch.zeros(1, 3, 2, 2), [""])
    assert module.CALLS == [1] and source_sha256(module.f) == before


SCRIPT = """
import sys; sys.path.insert(0, {folder!r})
from align_gen.reward_heads.source import source_sha256
import functools
text = '''
def f(media, prompts):
    return [prompt in {{"a", "b", "c", "d"}} for prompt in prompts]
class Scorer:
    words = {{"a", "b", "c", "d"}}
    def __call__(self, media, prompts): return f(media, prompts)
'''
exec(text)
print(source_sha256(f), source_sha256(Scorer()), source_sha256(functools.partial(f)))
"""


@pytest.mark.slow
def test_every_process_computes_the_same_hash(tmp_path: Path) -> None:
    """Sets have another order in each; so the constants of code without source are sorted."""
    printed = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path))]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1 and len(set(printed.pop().split())) == 3


@pytest.mark.parametrize("thing", [len, "".join, functools.partial(max, 1), object(), int])
def test_anything_has_a_hash(thing: Any) -> None:
    assert source_sha256(thing) == source_sha256(thing)


# --- in provenance --------------------------------------------------------------------------------


def named(file: Path, attribute: str) -> str:
    return str(load(f"{file}:{attribute}").provenance()["code_sha256"])


@pytest.mark.parametrize("attribute", ["f", "Head", "Frozen"])
def test_a_named_file_counts_as_a_whole(tmp_path: Path, attribute: str) -> None:
    """Edited within the same second and to the same length, which Python's import would not see."""
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    stamp = file.stat().st_mtime
    before = named(file, attribute)
    assert before == named(file, attribute)
    file.write_text(MODULE.replace("return SCALE *", "return SCALE /").replace("1.0 *", "9.0 *"))
    os.utime(file, (stamp, stamp))
    assert named(file, attribute) != before


def test_the_bytes_that_are_hashed_are_those_that_run(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "mine.py"
    picture = torch.ones(1, 3, 2, 2)
    for value in ("1.0", "9.0"):
        file.write_text(MODULE.replace("1.0 * media", f"{value} * media"))
        os.utime(file, (1e9, 1e9))
        assert load(f"{file}:Head")(picture, [""]).tolist() == [float(value)]


def test_a_dotted_path_counts_with_its_modules_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = set()
    for value in ("1.0", "9.0"):
        (tmp_path / "mine_dotted.py").write_text(MODULE.replace("1.0 * media", f"{value} * media"))
        sys.modules.pop("mine_dotted", None)
        found = load("mine_dotted:Head").provenance()["code_sha256"]
        assert found == load("mine_dotted:f").provenance()["code_sha256"]
        hashes.add(found)
    assert len(hashes) == 2


def test_a_head_of_ones_own_tells_its_source_whatever_it_says_itself() -> None:
    class Mine(RewardHead):
        def __call__(self, media: Any, prompts: Any, **context: Any) -> Any:
            return media.mean((1, 2, 3))

        def provenance(self) -> dict[str, Any]:
            return {"weights_sha256": None, "preprocessing": "mine", "dtype": "", "options": {}}

    class Other(Mine):
        def __call__(self, media: Any, prompts: Any, **context: Any) -> Any:
            return -media.mean((1, 2, 3))

    mine, other = Mine().provenance(), Other().provenance()
    assert mine["preprocessing"] == other["preprocessing"] == "mine"
    assert mine["code_sha256"] == Mine().provenance()["code_sha256"] != other["code_sha256"]


def test_heads_of_the_table_have_no_source_to_tell() -> None:
    assert "code_sha256" not in load("mean_hue").provenance()
    assert "code_sha256" not in load("ensemble", members=["colour", "mean_hue"]).provenance()


def wrapped(function: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    head = load(function)
    return {
        "alone": {"name": function},
        "in views": {"name": "views", "head": head},
        "in segments": {"name": "segments", "head": head},
        "in an ensemble": {"name": "ensemble", "members": [head, "colour"]},
        "of the table": {"name": "colour"},
    }


def test_a_set_tells_which_of_its_heads_are_code(tmp_path: Path) -> None:
    found = []
    for number, text in enumerate((MODULE, MODULE.replace("SCALE * helper", "SCALE + helper"))):
        module = module_of(text, tmp_path / str(number), console=False)
        found.append(reward_set(wrapped(module.f)).provenance())
    before, after = found
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"alone", "in views", "in segments", "in an ensemble"}
    assert before["of the table"] == after["of the table"]
