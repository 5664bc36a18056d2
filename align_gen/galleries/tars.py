"""Read the samples of tar shards, packed or not, from front to back and without unpacking to disk.

What a header claims is never believed further than its bounds, and a shard that ends before its end
blocks, or goes on after them, says so in a row.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

from ..errors import one_line
from .beneath import read_all
from .formats import MAX_BYTES, MAX_TEXT, MEDIA, UnreadablePicture
from .items import Item, Opener
from .rows import with_prompt

PROMPTS = (".txt", ".prompt", ".caption")
MAX_HEADER = 2**18  # bytes of a long name, or of the attributes of a member
MAX_UNPACKED = 2**28  # bytes that a packed shard may give, and PACKED_RATIO for each of its own
PACKED_RATIO = 100
MAX_PADDING = 2**26  # zeros after the end
BUFFER = 2**18  # bytes that are read at once
EMPTY_READS = 100  # after the last byte
LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def read_tar(file: str, opener: Opener) -> Iterator[Item]:
    """The samples of a WebDataset shard.

    Members that follow each other under one name, ``key.jpg`` and ``key.txt``, are one sample. A
    damaged shard gives what came whole before the damage, then one item with the reason.
    """
    shard = PurePosixPath(file).name
    sample = _Sample(shard, "")
    previous: _Sample | None = None
    try:
        with opener.open(file, "rb") as packed:
            stream: Any = _Unpacked(packed)
            options: dict[str, Any] = {"mode": "r|", "tarinfo": _Header, "bufsize": BUFFER}
            archive: Any
            with tarfile.open(fileobj=stream, **options) as archive:
                for member in archive:
                    # tarfile would keep every header that it has read.
                    archive.members = []
                    archive.pax_headers = {}
                    if not member.isfile():
                        continue
                    key, _, extension = member.name.rpartition(".")
                    # A new name ends the sample, as its members follow each other.
                    if key != sample.key:
                        yield from sample.items()
                        previous = sample if sample.parts else previous
                        sample = _Sample(shard, key)
                    sample.add(archive, member, f".{extension.lower()}")
                _require_end(archive.fileobj)
    except Exception as error:
        reason = f"the shard is damaged: {one_line(error, 160) or type(error).__name__}"
        # Texts of the last sample may be in what is lost: without a prompt its scores were wrong.
        if previous is None or not previous.parts.keys() <= sample.parts.keys():
            sample.fault = reason
        yield from sample.items()
        yield Item({"file_name": f"{shard}/(the rest)"}, UnreadablePicture(reason))
        return
    yield from sample.items()


@dataclass
class _Sample:
    """The picture of one name, and the texts beside it.

    Attributes:
        shard: name of the file.
        key: name of the sample.
        parts: contents by extension.
        fault: why the sample cannot be read.
    """

    shard: str
    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
        """Read a member at once, as a stream cannot go back to it; what nobody wants is skipped."""
        if extension in MEDIA and not any(each in MEDIA for each in self.parts):
            limit = MAX_BYTES
        elif extension in (*PROMPTS, ".json"):
            limit = MAX_TEXT
        else:
            return
        if member.size > limit:
            self.fault = f"{member.name[-80:]!r} is larger than {limit} bytes"
            self.parts[extension] = b""
            return
        stream = archive.extractfile(member)
        content = b"" if stream is None else read_all(stream, limit, member.size)
        if len(content) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        self.parts[extension] = content

    def items(self) -> Iterator[Item]:
        """The item of the sample, none without a picture; texts are its prompt and columns."""
        picture = next((extension for extension in self.parts if extension in MEDIA), None)
        if picture is None:
            return
        name = {"file_name": f"{self.shard}/{self.key}{picture}"}
        if self.fault is not None:
            yield Item(name, UnreadablePicture(self.fault))
            return
        row = _columns(self.parts.get(".json", b"{}"))
        text = next((self.parts[each] for each in PROMPTS if each in self.parts), None)
        if text is not None:
            row["prompt"] = text.decode("utf-8", "replace").strip()
        yield Item(with_prompt(row) | name, self.parts[picture])


def _columns(content: bytes) -> dict[str, Any]:
    """The columns of a JSON file; none where it is broken, as the picture is there all the same."""
    try:
        columns = json.loads(content)
        # Half a surrogate pair parses, but could not be written again.
        json.dumps(columns, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return dict(columns) if isinstance(columns, dict) else {}


# --- the archive ----------------------------------------------------------------------------------


class _Header(tarfile.TarInfo):
    """The header of a member; a broken one is an error.

    tarfile would take it for the end of the archive, and read names and attributes of any size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"no header and no end where one must be ({error})") from error
        if header.type in LONG_HEADERS and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a name or attributes of more than {MAX_HEADER} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("sparse members are not read")
        return header

    def _no_sparse(self, *_: Any) -> None:
        raise tarfile.ReadError("sparse members are not read")

    # tarfile calls these for the three formats of sparse members among the attributes.
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse


def _require_end(stream: Any) -> None:
    """ReadError unless zeros alone follow the end: a second shard would be lost in silence.

    This also has the checksum at the end of a packed shard compared.
    """
    left = MAX_PADDING
    while block := stream.read(2**16):
        left -= len(block)
        if any(block) or left < 0:
            raise tarfile.ReadError("there is more after the end of the archive")


class _Unpacked:
    """The bytes of a shard, unpacked; a stream that gives too much for its size is an error."""

    def __init__(self, packed: IO[bytes]):
        self.packed = _Counted(packed)
        self.stream = _unpacking(self.packed)
        self.given = 0
        self.empty = 0

    def read(self, size: int) -> bytes:
        data: bytes = self.stream.read(size)
        self.given += len(data)
        # To skip a member of a size that no file has, tarfile would read on for ever.
        self.empty += not data
        if self.empty > EMPTY_READS:
            raise EOFError("unexpected end of data")
        if self.given > MAX_UNPACKED + PACKED_RATIO * self.packed.count:
            raise OSError(f"unpacks to more than {PACKED_RATIO} times its size")
        return data


def _unpacking(packed: _Counted) -> Any:
    """The stream that unpacks a file, by its first bytes; the file itself if it is not packed."""
    if packed.head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed, mode="rb")  # type: ignore[call-overload]
    if packed.head.startswith(b"BZh"):
        return bz2.BZ2File(packed)  # type: ignore[call-overload]
    if packed.head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(packed)  # type: ignore[arg-type]
    return packed


class _Counted:
    """A file that counts its bytes, and whose first ones are known."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.head = file.read(6)
        self.left = self.head
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self.left[:size] if self.left and size >= 0 else self.left
        self.left = self.left[len(data) :]
        data = data or self.file.read(size)
        self.count += len(data)
        return data
