"""Files and folders appear whole, through no link, and what is not ours stays."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from align_gen import files
from align_gen.errors import UserError


def write(path: Path, content: bytes = b"new") -> None:
    with files.whole_file(path) as file:
        file.write(content)


def fill(target: Path, content: str = "new") -> None:
    with files.whole_folder(target) as part:
        (part / "a.txt").write_text(content)


def killed(action: Callable[[], None]) -> None:
    """Run ``action`` in a child that kills itself within it."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path / "f", b"old")
    write(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    write(tmp_path / "f", b"old")
    with suppress(KeyError), files.whole_file(tmp_path / "f") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    """0o666 less the umask, as ``open`` makes it."""
    (tmp_path / "plain").write_bytes(b"")
    write(tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_all_files_of_a_folder_have_the_mode_of_any_new_file(tmp_path: Path) -> None:
    """Also those that a library makes readable to their owner alone, or to everybody."""
    (tmp_path / "plain").write_bytes(b"")
    with files.whole_folder(tmp_path / "g") as part:
        (part / "deeper").mkdir()
        for name, mode in (("a", 0o600), ("deeper/b", 0o666), ("c", 0o755)):
            (part / name).write_text("")
            (part / name).chmod(mode)
    wanted = (tmp_path / "plain").stat().st_mode
    found = [path for path in (tmp_path / "g").rglob("*") if path.is_file()]
    assert [path.stat().st_mode for path in found] == [wanted] * 3


@pytest.mark.parametrize("kind", ["link", "link to nowhere", "folder", "pipe"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    target, canary = tmp_path / "f", tmp_path / "canary"
    canary.write_text("mine")
    makes = {
        "link": lambda: target.symlink_to(canary),
        "link to nowhere": lambda: target.symlink_to(tmp_path / "nowhere"),
        "folder": lambda: target.mkdir(),
        "pipe": lambda: os.mkfifo(target),
    }
    makes[kind]()
    with pytest.raises(UserError, match=r"f: is a .*; want a new name"):
        write(target)
    assert canary.read_text() == "mine"
    assert names(tmp_path) == ["canary", "f"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    target, other = tmp_path / "g", tmp_path / "other"
    other.mkdir()
    (other / "canary").write_text("mine")
    target.symlink_to(other) if kind == "link" else target.write_text("mine")
    with pytest.raises(UserError, match=r"g: is a .*; want a new name"):
        fill(target)
    assert (other / "canary").read_text() == "mine"


def test_a_kill_while_a_file_is_written_leaves_the_old_and_the_next_write_clears(
    tmp_path: Path,
) -> None:
    write(tmp_path / "f", b"old")

    def half() -> None:
        with files.whole_file(tmp_path / "f") as file:
            file.write(b"half")
            die()

    killed(half)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    write(tmp_path / "f")
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_before_each_rename_of_a_folder_leaves_the_old_one(
    tmp_path: Path, rename: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rename puts the old folder aside, the second one lets the new one appear."""
    target = tmp_path / "g"
    fill(target, "old")
    count = 0
    replace = os.replace

    def counted(source: Path, goal: Path) -> None:
        nonlocal count
        count += 1
        if count == rename:
            die()
        replace(source, goal)

    monkeypatch.setattr(os, "replace", counted)
    killed(lambda: fill(target))
    monkeypatch.undo()
    assert (files.surviving(target) / "a.txt").read_text() == "old"
    files.clear(target)
    assert names(tmp_path) == ["g"]
    assert (target / "a.txt").read_text() == "old"


def test_what_another_process_writes_is_not_cleared(tmp_path: Path) -> None:
    with files.whole_file(tmp_path / "f") as first:
        first.write(b"first")
        write(tmp_path / "f", b"second")
    assert (tmp_path / "f").read_bytes() == b"first"
    with files.whole_folder(tmp_path / "g") as part:
        (part / "a.txt").write_text("first")
        fill(tmp_path / "g", "second")
    assert (tmp_path / "g" / "a.txt").read_text() == "first"


def test_neighbours_of_like_names_stay(tmp_path: Path) -> None:
    """None of them is a name that a write makes: it ends in 16 digits and a suffix."""
    likes = [".f.part", ".f.old", ".f.parts", "f.bak", ".f.0123.part", ".f.0123456789abcdef", ".f"]
    for name in likes:
        (tmp_path / name).write_text("mine")
    canary = tmp_path / "canary"
    canary.mkdir()
    link = tmp_path / ".f.0123456789abcdef.part"
    link.symlink_to(canary)
    write(tmp_path / "f")
    assert {*names(tmp_path)} == {*likes, "f", "canary", link.name}


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "f").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "gone")
    assert names(tmp_path) == ["there"]
    assert (tmp_path / "there" / "f").read_text() == "mine"


def test_a_link_at_any_depth_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    files.require_no_links(tmp_path)
    (tmp_path / "a" / "b" / "c").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"a/b/c: is a link"):
        files.require_no_links(tmp_path)


def test_what_is_added_stands_at_the_end_and_behind_no_link(tmp_path: Path) -> None:
    files.append(tmp_path / "f", b"one\n")
    files.append(tmp_path / "f", b"two\n")
    assert (tmp_path / "f").read_bytes() == b"one\ntwo\n"
    (tmp_path / "link").symlink_to(tmp_path / "f")
    with pytest.raises(OSError, match="link"):
        files.append(tmp_path / "link", b"three\n")
    assert (tmp_path / "f").read_bytes() == b"one\ntwo\n"


def test_nothing_is_moved_onto_something(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="b: is there already"):
        files.move(tmp_path / "a", tmp_path / "b")
    files.move(tmp_path / "a", tmp_path / "c")
    assert names(tmp_path) == ["b", "c"]


def test_folders_that_hold_something_stay(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "f").write_text("mine")
    files.remove_empty([tmp_path / "a" / "b", tmp_path / "a", tmp_path / "gone"])
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["f"]
