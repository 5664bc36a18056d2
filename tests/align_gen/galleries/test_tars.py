"""Tar shards from a stranger: no prefix loses rows in silence, no header costs more than rows."""

import bz2
import gzip
import io
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_gen.galleries.formats import MAX_TEXT, UnreadablePicture
from align_gen.galleries.items import Item
from align_gen.galleries.tars import MAX_HEADER, read_tar
from tests.kits.pictures import picture, tar

PACKINGS = ("w", "w:gz", "w:bz2", "w:xz")
PICTURE = picture()


def items(content: bytes) -> list[Item]:
    memory = fsspec.filesystem("memory")
    memory.pipe("/x.tar", content)
    return list(read_tar("/x.tar", memory))


def names(content: bytes) -> list[str]:
    """What can be read; the last, where not all can."""
    found = items(content)
    good = [item for item in found if not isinstance(item.content, UnreadablePicture)]
    assert len(good) >= len(found) - 2
    return [str(item.row["file_name"]) for item in good]


@cache
def shard(mode: str, texts: bool) -> bytes:
    members = [(f"{n}.png", picture(level=n)) for n in range(4)]
    if texts:
        members += [(f"{n}.txt", f"prompt {n}".encode()) for n in range(4)]
    return tar(sorted(members), mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", PACKINGS)
@pytest.mark.parametrize("texts", [False, True])
@settings(max_examples=80, deadline=None, derandomize=True)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_prefix_of_a_shard_loses_no_row_in_silence(
    mode: str, texts: bool, fraction: float
) -> None:
    """All rows are there, or one says that they are not; and none has lost its prompt."""
    whole = shard(mode, texts)
    everything = items(whole)
    assert len(everything) == 4
    found = items(whole[: int(fraction * len(whole))])
    broken = [item for item in found if isinstance(item.content, UnreadablePicture)]
    assert broken or found == everything
    good = [item for item in found if item not in broken]
    assert good == everything[: len(good)]


def test_a_shard_cut_between_two_members_loses_only_the_rest() -> None:
    """Each of them takes a block for its header and one for its content."""
    whole = shard("w", False)
    assert names(whole[: 2 * 1024]) == ["x.tar/0.png", "x.tar/1.png"]
    assert "the shard is damaged" in str(items(whole[: 2 * 1024])[-1].content)


def test_a_broken_header_is_not_the_end() -> None:
    whole = shard("w", False)
    assert names(whole[:2048] + b"?" + whole[2049:]) == ["x.tar/0.png", "x.tar/1.png"]
    assert "the shard is damaged" in str(items(whole[:2048] + b"?" + whole[2049:])[-1].content)


def test_a_second_shard_behind_the_first_is_not_lost_in_silence() -> None:
    found = items(shard("w", False) * 2)
    assert len(found) == 5
    assert "more after the end" in str(found[-1].content)


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(format=tarfile.GNU_FORMAT)


def chain(count: int) -> bytes:
    content = b"22 key=1234567890123\n\n"
    return (header(tarfile.XGLTYPE, len(content)) + content.ljust(512, b"\0")) * count


GOOD = tar([("a.png", PICTURE)])[:1024]
END = bytes(1024)
# What stands behind a good sample, and how many more items that makes.
BEHIND: dict[str, Callable[[], bytes]] = {
    "a name that is too long": lambda: header(tarfile.GNUTYPE_LONGNAME, MAX_HEADER + 1),
    "attributes that are too long": lambda: header(tarfile.XHDTYPE, MAX_HEADER + 1),
    "attributes of all members": lambda: header(tarfile.XGLTYPE, 2**33),
    "attributes without end": lambda: chain(5000),
    "a sparse member": lambda: header(tarfile.GNUTYPE_SPARSE, 0, "b.png"),
    "a member as large as no disk": lambda: header(tarfile.REGTYPE, 2**62, "b.npy"),
    "a size below zero": lambda: header(tarfile.REGTYPE, -1024, "b.png"),
    "bytes of no kind": lambda: bytes(range(256)) * 8,
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["", "gz", "bz2"])
@pytest.mark.parametrize("case", BEHIND)
def test_a_header_that_lies_costs_the_rest_of_the_shard(
    case: str, pack: Callable[[bytes], bytes]
) -> None:
    found = items(pack(GOOD + BEHIND[case]() + END))
    assert [item.row["file_name"] for item in found][-1] == "x.tar/(the rest)"
    assert isinstance(found[-1].content, UnreadablePicture) and "\n" not in str(found[-1].content)


def test_texts_that_are_too_long_cost_their_own_row() -> None:
    long = b" " * (MAX_TEXT + 1)
    members = [("a.png", PICTURE), ("a.txt", long), ("b.png", PICTURE), ("b.json", long)]
    found = items(tar([*members, ("c.png", PICTURE), ("c.npy", long)]))
    assert [type(item.content) for item in found] == [UnreadablePicture] * 2 + [bytes]
    assert str(found[0].content) == f"'a.txt' is larger than {MAX_TEXT} bytes"


@pytest.mark.slow
def test_a_shard_that_unpacks_without_end_stops() -> None:
    """300 MB of zeros in less than a kilobyte: only a part of them is ever unpacked."""
    packer = bz2.BZ2Compressor()
    content = packer.compress(GOOD + header(tarfile.REGTYPE, 2**32, "b.npy"))
    content += b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    found = items(content)
    assert "unpacks to more than" in str(found[-1].content)


def test_headers_are_not_kept(tmp_path: Path) -> None:
    """tarfile keeps each of them in a list, which takes a kilobyte a member."""
    buffer = io.BytesIO(tar((f"{n}.png", PICTURE) for n in range(50)))
    stream = read_tar("/x.tar", _Opens(buffer))
    next(stream)
    for _ in range(48):
        next(stream)
    frame = stream.gi_frame  # type: ignore[attr-defined]
    assert len(frame.f_locals["archive"].members) <= 1


class _Opens:
    def __init__(self, file: io.BytesIO):
        self.file = file

    def open(self, path: str, mode: str) -> io.BytesIO:
        return self.file
