"""Files of a folder from a stranger: no link leads out of it, whenever it is put there."""

import os
import threading
from pathlib import Path

import pytest

from align_gen.galleries.beneath import read_beneath
from align_gen.galleries.formats import UnreadablePicture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, and a secret beside it."""
    (tmp_path / "g" / "sub").mkdir(parents=True)
    (tmp_path / "g" / "sub" / "a.png").write_bytes(b"inside")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"secret")
    return tmp_path / "g"


def test_links_inside_are_followed(folder: Path) -> None:
    (folder / "link.png").symlink_to("sub/a.png")
    (folder / "link").symlink_to("sub")
    for name in ("sub/a.png", "./sub/a.png", "link.png", "link/a.png"):
        assert read_beneath(folder, name, 6) == b"inside"


def test_what_leads_out_or_is_too_large_is_refused(folder: Path) -> None:
    (folder / "link.png").symlink_to("../out/a.png")
    (folder / "link").symlink_to("../out")
    (folder / "device.png").symlink_to("/dev/zero")
    for name in ("link.png", "link/a.png", "device.png", "../out/a.png", str(folder / "a"), ""):
        with pytest.raises(UnreadablePicture, match="leaves the folder"):
            read_beneath(folder, name, 6)
    with pytest.raises(UnreadablePicture, match="larger than 5 bytes"):
        read_beneath(folder, "sub/a.png", 5)


def test_what_is_no_file_is_not_there(folder: Path) -> None:
    """A pipe would wait for its other end."""
    os.mkfifo(folder / "pipe.png")
    (folder / "circle.png").symlink_to("circle.png")
    for name in ("pipe.png", "circle.png", "sub", "gone.png", "sub/a.png/b.png"):
        with pytest.raises(FileNotFoundError):
            read_beneath(folder, name, 6)


@pytest.mark.slow
@pytest.mark.parametrize("swapped", ["sub", "sub/a.png"])
def test_a_name_swapped_for_a_link_while_it_is_read(folder: Path, swapped: str) -> None:
    """The file or its folder becomes a link to the secret, and is itself again, all the time."""
    done = threading.Event()
    target = folder / swapped
    link = folder / "link"
    link.symlink_to(folder.parent / "out" / ("a.png" if swapped.endswith("png") else ""))

    def swap() -> None:
        aside = folder / "aside"
        while not done.is_set():
            target.rename(aside)
            link.rename(target)
            target.rename(link)
            aside.rename(target)

    thread = threading.Thread(target=swap)
    thread.start()
    found = set()
    try:
        for _ in range(4000):
            try:
                found.add(read_beneath(folder, "sub/a.png", 6))
            except (OSError, UnreadablePicture):
                continue
    finally:
        done.set()
        thread.join()
    assert found == {b"inside"}
