"""`align-gen list`: every table, and the options of methods and rewards."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from align_gen import bundled
from align_gen.commands.listing import first_sentence
from align_gen.commands.options import Option, options_of_model, yaml_of
from align_gen.methods import prdp
from tests.kits.command_line import Cli, mistake


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("rewards", "clip"),
        ("methods", "prdp"),
        ("models", ""),
        ("recipes", "paper/prdp-small"),
        ("prompts", "emoji-train"),
        ("assets", "emoji-train"),
    ],
)
def test_list(cli: Cli, what: str, known: str) -> None:
    """Plain: a line each that begins with the name; as JSON the same rows."""
    plain, as_json = cli("list", what), cli("list", what, "--json")
    assert plain.code == as_json.code == 0
    rows = json.loads(as_json.out)
    lines = plain.out.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert line.endswith(row["description"])
    if what != "models":  # they are built, and may be missing here
        assert known in {row["name"] for row in rows}
        assert all(row["description"] for row in rows)


@pytest.mark.parametrize("what", ["rewards", "methods", "models", "prompts"])
def test_a_line_says_what_its_name_is_for(cli: Cli, what: str) -> None:
    """In words, without formulas or marks of code, and no two names alike."""
    rows = json.loads(cli("list", what, "--json").out)
    texts = [row["description"] for row in rows]
    assert len(set(texts)) == len(texts)
    for text in texts:
        words = text.replace("open_clip", "")  # a library's own name
        assert not re.search(r"[=^_]|``|\bexp\(|\b1 - ", words), text
        assert len(text.split()) >= 4, text
    if what == "rewards":
        assert {text.split()[0] for text in texts} == {"Scores", "Averages"}


@pytest.mark.slow
def test_a_name_is_introduced_above_its_options(cli: Cli) -> None:
    for what in ("method", "reward"):
        for row in json.loads(cli("list", f"{what}s", "--json").out):
            done = cli("list", what, row["name"])
            assert done.out.splitlines()[0] == f"{row['description']}."
    assert cli("list", "reward", "colour").out.splitlines()[1] == "It has no options."
    assert cli("list", "reward", "colour", "--json").out.strip() == "[]"


def test_options_of_rewards_are_written_as_in_a_recipe(cli: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "reward", "hps", "--json").out)}
    assert "null: the published checkpoint" in rows["path"]["description"]
    assert "`" not in rows["version"]["description"]


def test_list_of_nothing_is_one_line(cli: Cli) -> None:
    assert "rewards" in mistake(cli("list", "reward"))
    assert "have ['assets', " in mistake(cli("list", "everything"))
    assert "want no name" in mistake(cli("list", "rewards", "clip"))
    assert "'prdp'" in mistake(cli("list", "method", "prdq"))
    assert "'clip'" in mistake(cli("list", "reward", "clap"))


def test_models_say_whether_they_draw_or_score(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, file in (("zz-pipe", "model_index.json"), ("clip", "open_clip_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        (tmp_path / name / "README.md").write_text(f"---\nx: y\n---\n# {name}: a small thing\n")
    monkeypatch.setattr(bundled, "MODELS", tmp_path)
    assert cli("list", "models").out.splitlines() == [
        "zz-pipe  generator  a small thing",
        "clip     CLIP       a small thing",
    ]


def test_the_options_of_a_method_are_its_model(cli: Cli) -> None:
    done = cli("list", "method", "prdp", "--json")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert list(rows) == list(prdp.Options.model_fields)
    assert (rows["keep"]["type"], rows["keep"]["default"]) == ("whole number or null", "null")
    assert rows["keep"]["bounds"] == "≥ 2"
    for name, field in prdp.Options.model_fields.items():
        assert rows[name]["description"] == " ".join((field.description or "").split())
    plain = cli("list", "method", "prdp").out
    assert [line.split()[0] for line in plain.splitlines()[1:]] == ["name", *rows]


def test_the_options_of_a_reward_are_its_own(cli: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "reward", "clip", "--json").out)}
    assert rows["path"]["default"] == "required"
    assert float(rows["alpha"]["default"]) == 0.5


def test_a_field_is_described_by_its_words_alone() -> None:
    class Inner(BaseModel):
        rank: int = 8

    class Options(BaseModel):
        path: str
        share: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Of\n  all.")
        seconds: float | None = Field(None, json_schema_extra={"unit": "s"})
        mode: Literal["a", "b"] = "a"
        seeds: tuple[int, ...] = Field((0, 1), min_length=1)
        inner: Inner = Inner()

    assert options_of_model(Options) == [
        Option("path", "text", "required", "", "", ""),
        Option("share", "number", "0.5", "> 0, ≤ 1", "", "Of all."),
        Option("seconds", "number or null", "null", "", "s", ""),
        Option("mode", "a | b", "a", "", "", ""),
        Option("seeds", "list of whole numbers", "[0, 1]", "length ≥ 1", "", ""),
        Option("inner", "section", "{rank: 8}", "", "", ""),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), ("null", "'null'"), (None, "null"), (1e-5, "1.0e-05"), (True, "true")],
)
def test_values_are_yaml(value: object, text: str) -> None:
    assert yaml_of(value) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One line.", "One line"),
        ("Two\nlines. And more.\n\nAnd more.", "Two lines"),
        ("By Liu et al. NeurIPS, eq. A 3.", "By Liu et al. NeurIPS, eq. A 3"),
    ],
)
def test_a_docstring_is_listed_by_its_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence
