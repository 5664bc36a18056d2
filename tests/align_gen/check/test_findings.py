"""Findings know their direction, and every law says what it means."""

import math

import pytest
import torch

from align_gen.check import LAWS, MEANING, Subject, check
from align_gen.check.findings import Finding, above, below, difference
from align_gen.check.laws import TRAINED
from tests.tiny import subject


def test_a_limit_is_shown_with_its_direction() -> None:
    """At most the limit passes at the limit; above it fails there."""
    assert below("a", 1.0, 1.0).passed and not below("a", 1.5, 1.0).passed
    assert above("a", 1.5, 1.0).passed and not above("a", 1.0, 1.0).passed
    assert below("a", 0.0, 3e-5).bound == "≤ 3e-05" and above("a", 56, 0).bound == "> 0"
    assert below("a", 1.0, 1.0).direction == "at_most" and above("a", 1.0, 1.0).direction == "above"
    assert Finding("a", True, 1.0, "finite").bound == "finite"


def test_pictures_of_different_shapes_differ_without_limit() -> None:
    assert difference(torch.zeros(2, 3), torch.zeros(3, 2)) == math.inf
    assert difference(torch.zeros(2), torch.tensor([0.25, -0.5])) == 0.5


def test_every_law_has_one_sentence() -> None:
    assert list(MEANING) == list(LAWS | TRAINED)
    assert all(text.endswith(".") and text.count(".") == 1 for text in MEANING.values())


def test_findings_name_their_law_and_stay_when_the_law_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a law found before it raised is kept beside the error."""

    def breaks(one: Subject):  # type: ignore[no-untyped-def]
        yield below("first", 0.0, 1.0)
        raise RuntimeError("then this")

    monkeypatch.setattr("align_gen.check.laws.LAWS", {"breaks": breaks})
    first, error = check(subject("sd"), untrained=True)
    assert first == Finding("first", True, 0.0, 1.0, "at_most", "breaks")
    assert error == Finding("breaks", False, "RuntimeError: then this", "no error", "", "breaks")
