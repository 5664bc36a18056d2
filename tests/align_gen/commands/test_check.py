"""`align-gen check`: its table, its legend, its exit code; the laws have their own tests."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from align_gen.check import LAWS, Finding
from tests.kits.command_line import Cli, mistake

FINDINGS = [
    Finding("difference", True, 2e-6, 3e-5, "at_most"),
    Finding("texts count", True, 0.845, 3e-5, "above"),
    Finding("LoRA layers", True, 56, 0, "above"),
    Finding("stray gradients", True, 0, 0, "at_most"),
    Finding("attention, unet", True, "14 x sdpa", "any"),
]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the laws find, in place of a model that is measured."""
    found = list(FINDINGS)
    monkeypatch.setattr("align_gen.opening.open_model", lambda *_, **__: None)
    monkeypatch.setattr("align_gen.check.subject.Subject.of", lambda *_, **__: None)
    monkeypatch.setattr("align_gen.check.laws.check", lambda *_, **__: found)
    return found


def cells(done: Any, name: str) -> list[str]:
    [line] = [line for line in done.out.splitlines() if f" {name} " in line]
    first, second = line.split(name)
    return [*first.split(), *second.split("  ")]


def test_a_limit_has_a_direction(cli: Cli, findings: list[Finding]) -> None:
    done = cli("check", "emoji-sd")
    assert done.code == 0
    rows = {finding.name: cells(done, finding.name) for finding in findings}
    assert [row[0] for row in rows.values()] == ["ok"] * 5
    limits = [row[-1].strip() for row in rows.values()]
    assert limits == ["≤ 3e-05", "> 3e-05", "> 0", "≤ 0", "any"]


def test_a_law_that_does_not_hold_is_exit_1(cli: Cli, findings: list[Finding]) -> None:
    """The direction is that of the law, not of the failure."""
    findings[:] = [
        Finding("difference", False, 0.1, 3e-5, "at_most"),
        Finding("layers", False, 0, 0, "above"),
    ]
    done = cli("check", "emoji-sd")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[1].split() == ["FAILED", "difference", "0.1", "≤", "3e-05"]
    assert lines[2].split() == ["FAILED", "layers", "0", ">", "0"]
    assert cli("check", "emoji-sd", "--json").code == 1


def test_json_is_the_findings(cli: Cli, findings: list[Finding]) -> None:
    rows = json.loads(cli("check", "emoji-sd", "--json").out)
    assert {**rows[1], "law": ""} == asdict(FINDINGS[1])


@pytest.mark.parametrize("options", [[], ["--untrained"]], ids=str)
def test_a_legend_says_what_each_law_means(
    cli: Cli, findings: list[Finding], options: list[str]
) -> None:
    done = cli("check", "emoji-sd", *options)
    legend = done.out.split("\n\n")[1].splitlines()
    names = [*LAWS, *([] if options else ["denoises"])]
    assert [line.split(": ")[0] for line in legend] == names
    assert all(len(line.split(": ", 1)[1]) > 20 for line in legend)


def test_a_toy_is_refused_with_the_reason(cli: Cli) -> None:
    assert "no diffusers pipeline to be compared with" in mistake(cli("check", "toy-flow"))
