"""Text accuracy: the formula by hand, and the real reader on pictures of real text."""

import sys
from importlib.metadata import version
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from align_gen.reward_heads.heads.ocr import TextAccuracy, accuracy, edits, squeeze

# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("abc", "abd", 1),  # substitution
        ("abc", "bc", 1),  # deletion
        ("abc", "xabc", 1),  # insertion
        ("ab", "ba", 2),
        ("kitten", "sitting", 3),
        ("intention", "execution", 5),
    ],
)
def test_edits_by_hand(a: str, b: str, expected: int) -> None:
    assert edits(a, b) == edits(b, a) == expected


def test_edits_are_a_distance() -> None:
    """Triangle inequality, and no more than the longer word, on all words of up to three letters of
    two.
    """
    words = ["".join(letters) for count in range(4) for letters in product("ab", repeat=count)]
    assert len(words) == 1 + 2 + 4 + 8
    for a in words:
        for b in words:
            assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))
            assert all(edits(a, b) <= edits(a, c) + edits(c, b) for c in words)


@pytest.mark.parametrize(
    ("read", "wanted", "expected"),
    [
        ("open", "open", 1.0),
        ("opem", "open", 0.75),
        ("", "open", 0.0),
        ("openopenopen", "open", 0.0),
        ("op", "open", 0.5),
    ],
)
def test_accuracy_by_hand(read: str, wanted: str, expected: float) -> None:
    """1 - edits / 4, and never below 0, however much else is read."""
    assert accuracy(read, wanted) == expected


def test_squeeze_takes_white_space_and_capitals() -> None:
    assert squeeze(" Grand\n HOTEL\t24 ") == "grandhotel24"


# --- the reader -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> TextAccuracy:
    pytest.importorskip("rapidocr")
    return TextAccuracy()


def sign(text: str, ink: tuple[int, int, int] = (20, 30, 120), size: int = 192) -> Tensor:
    """A picture of a text on cream, (3, size, size)."""
    picture = Image.new("RGB", (size, size), (250, 240, 220))
    font = ImageFont.load_default(size=size // 6)
    ImageDraw.Draw(picture).text((size / 2, size / 2), text, ink, font, anchor="mm", align="center")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.mark.slow
def test_the_right_text_scores_one_and_others_low(head: TextAccuracy) -> None:
    """In the order of the batch: right, right in other letters and spaces, one letter off, wrong,
    nothing.
    """
    media = torch.stack(
        [sign("OPEN"), sign("Fresh\nBread"), sign("OPEN"), sign("CLOSED"), torch.ones(3, 192, 192)]
    )
    prompts = [
        'a sign "Open"',
        "a sign that says “FRESH BREAD”",
        'a sign "OVEN"',
        'a sign "Bakery"',
        'a sign "Open"',
    ]
    found = head(media, prompts)
    assert found.dtype == torch.float32 and found.shape == (5,)
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 1.0, 0.75]))
    assert (
        found[3] <= 1 / 6 and found[4] == 0
    )  # "closed" has one letter of "bakery", in about its place
    torch.testing.assert_close(head(media.flip(0), prompts[::-1]), found.flip(0))


@pytest.mark.slow
def test_one_picture_is_a_batch(head: TextAccuracy) -> None:
    assert head(sign("OPEN")[None], ['"open"']).tolist() == [1.0]


@pytest.mark.slow
def test_several_quotations_are_wanted_one_after_the_other(head: TextAccuracy) -> None:
    assert head(sign("NORTH\nSOUTH")[None], ['"north" above "south"']).tolist() == [1.0]
    assert head(sign("NORTH\nSOUTH")[None], ['"south" above "north"']).item() < 0.7


@pytest.mark.slow
def test_the_reader_sees_red_as_red(head: TextAccuracy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes arrays with blue first, as OpenCV has them."""
    seen: list[Any] = []

    def look(array: Any, **options: Any) -> SimpleNamespace:
        seen.append(array)
        return SimpleNamespace(txts=None)

    monkeypatch.setattr(head, "reader", look)
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    head(red, ['"a"'])
    assert (
        seen[0].shape == (8, 8, 3)
        and seen[0].dtype == np.uint8
        and seen[0][0, 0].tolist() == [0, 0, 255]
    )


@pytest.mark.slow
def test_a_text_may_be_given_instead(head: TextAccuracy) -> None:
    """Fixed, or with the prompt in it; quotation marks then mean nothing."""
    media = sign("OPEN 24")[None]
    assert TextAccuracy(text="open 24")(media, ["a shop"]).tolist() == [1.0]
    assert TextAccuracy(text="{prompt} 24")(media, ["open"]).tolist() == [1.0]
    assert TextAccuracy(text="{prompt}")(media, ["a shop"]).item() < 0.3


@pytest.mark.slow
def test_an_unsure_line_does_not_count(head: TextAccuracy) -> None:
    """No line is read with full confidence."""
    media = sign("OPEN")[None]
    assert TextAccuracy(confidence=1.0)(media, ['"open"']).tolist() == [0.0]
    assert head(media, ['"open"']).tolist() == [1.0]


def test_it_is_not_differentiable_and_says_what_reads(head: TextAccuracy) -> None:
    provenance = head.provenance()
    assert not head.differentiable and head.range == (0.0, 1.0) and head.to("cpu") is head
    assert len(provenance["weights_sha256"]) == 64
    assert provenance["preprocessing"] == f"ocr-1-rapidocr-{version('rapidocr')}"
    assert provenance["options"] == {"text": None, "confidence": 0.5}


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt", ["a sign", "", 'an open " quotation', 'nothing in "" it', 'space in "  " it']
)
def test_a_prompt_that_quotes_nothing_is_named(head: TextAccuracy, prompt: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"ocr: prompt .* quotes no text; want it in double quotes, or the option text",
    ):
        head(torch.ones(1, 3, 32, 32), [prompt])


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"confidence": 2}, r"ocr confidence: want a number in \[0, 1\], got 2"),
        ({"text": " "}, "ocr text: want what is to be written, got ' '"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        TextAccuracy(**options)


def test_a_missing_package_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(
        ValueError, match=r"needs rapidocr and onnxruntime, pip install align_gen\[ocr\]"
    ) as error:
        TextAccuracy()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "reads"), [(None, True), ("SALE", False), ("a {prompt}", True)])
def test_a_text_of_its_own_needs_no_prompt(text: str | None, reads: bool) -> None:
    """What is wanted differs between two prompts exactly where the head says so."""
    pytest.importorskip("rapidocr")
    head = TextAccuracy(text=text)
    differs = head.wanted('"one"') != head.wanted('"two"')
    assert head.reads_prompt == differs == reads
