"""Lines for a terminal: controls become escapes, every other letter stays."""

import sys
import unicodedata

import pytest

from align_gen.errors import one_line, printable


@pytest.mark.slow
def test_every_control_is_escaped_and_no_letter_is() -> None:
    """Of all of Unicode: categories Cc and Cs, line separators, and the property Bidi_Control."""
    bidi = {0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        kind = unicodedata.category(letter)
        is_control = kind in ("Cc", "Cs", "Zl", "Zp") or code in bidi
        assert (printable(letter) == letter) != is_control, hex(code)


def test_escapes_are_those_of_python() -> None:
    assert printable("a\x1b]0;x\x07\nb\x9b\u202e\ud800é") == r"a\x1b]0;x\x07\nb\x9b\u202e\ud800é"


def test_an_error_is_one_line() -> None:
    error = ValueError("cannot  read\n\tx\x1b[2J.png")
    assert one_line(error) == r"cannot read x\x1b[2J.png"
    assert one_line(error, 8) == "cannot r"
