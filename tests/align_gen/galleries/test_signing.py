"""The secret that signs scores: the user's alone, made once."""

import os
import stat
import threading
from pathlib import Path

import pytest

from align_gen.galleries.signing import is_signed, signature


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "key"


def test_the_secret_is_made_once_and_for_the_user_alone(key: Path) -> None:
    first = signature(b"about", ["a", "b"])
    assert first is not None and len(first) == 64
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    assert signature(b"about", iter(["a", "b"])) == first
    assert is_signed(first, b"about", ["a", "b"])


def test_every_word_counts(key: Path) -> None:
    written = signature(b"about", ["a", "b"])
    for about, claims in (
        (b"About", ["a", "b"]),
        (b"about", ["a"]),
        (b"about", ["b", "a"]),
        (b"about", ["a", "b", ""]),
    ):
        assert not is_signed(written, about, claims)
    assert not is_signed(None, b"about", ["a", "b"])
    key.unlink()
    assert not is_signed(written, b"about", ["a", "b"])


@pytest.mark.parametrize("kind", ["readable", "short", "long", "link", "folder", "pipe"])
def test_a_secret_that_others_may_know_signs_nothing(key: Path, tmp_path: Path, kind: str) -> None:
    """And is left as it is."""
    written = signature(b"about", [])
    content = key.read_bytes()
    key.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        os.chmod(tmp_path / "elsewhere", 0o600)
        key.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        key.mkdir()
    elif kind == "pipe":
        os.mkfifo(key, 0o600)
    else:
        key.write_bytes({"short": content[:31], "long": content * 2}.get(kind, content))
        os.chmod(key, 0o640 if kind == "readable" else 0o600)
    assert signature(b"about", []) is None and not is_signed(written, b"about", [])


def test_without_a_place_for_a_secret_nothing_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGN_GEN_CACHE", str(tmp_path / "file" / "cache"))
    assert signature(b"about", []) is None


def test_two_at_once_have_one_secret(key: Path) -> None:
    found: list[bytes | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(signature(b"about", []))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and None not in found
