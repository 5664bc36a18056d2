"""Every family's adapter keeps the laws of ``align-gen check``: tiny random pipelines of the real classes."""

import pytest

from align_gen.check import check
from tests.tiny import PIPELINES, failed, subject


@pytest.mark.parametrize("name", PIPELINES)
def test_every_law_holds(name: str) -> None:
    found = check(subject(name), untrained=True)
    assert not failed(found)
    assert len(found) >= 21
