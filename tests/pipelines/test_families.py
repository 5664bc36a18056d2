"""Every family's adapter keeps the laws of ``align-gen check``: tiny random pipelines of the real
classes.
"""

import pytest

from align_gen.check.laws import check
from tests.tiny import PIPELINES, failed, subject


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_every_law_holds(name: str) -> None:
    found = check(subject(name), untrained=True)
    assert not failed(found)
    assert len(found) >= 21


@pytest.mark.parametrize("name", ["instruct-pix2pix", "controlnet", "flux-kontext"])
def test_a_family_that_wants_pictures_says_which(name: str) -> None:
    one = subject(name)
    with pytest.raises(
        ValueError, match=r"want the (pictures to edit|maps), \(1, 3, 16, 16\), got None"
    ):
        one.model.encode_prompts(["a"], height=16, width=16)
