"""Memory while pictures are read and scored: bounded by pixels and bytes, whatever files claim."""

import gzip
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from align_gen.galleries import reading
from align_gen.galleries.formats import OutOfMemory, UnreadablePicture
from align_gen.galleries.items import Item
from align_gen.galleries.reading import LARGE_PIXELS, PIXELS_AT_ONCE, read_ahead
from align_gen.galleries.scored import ScoredPicture
from align_gen.galleries.scoring import score
from align_gen.galleries.workers import BATCH_PIXELS, _by_shape
from tests.kits.pictures import picture, tar


def read(items: Sequence[Item], ahead: int = 64) -> Iterator[ScoredPicture]:
    with ThreadPoolExecutor(2) as pool:
        yield from read_ahead(items, pool, {}, ahead)


def level(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return (media.flatten(1)[:, :3].mean(1) * 255).round()


# --- order and bounds -----------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_of_all_sizes_come_in_order() -> None:
    """Small and large, broken and missing; the larger ones are decoded after the others' turn."""
    sides = [8, 3000, 8, 2000, 2500, 8, 3000, 8, 8] * 4
    contents: list[bytes | UnreadablePicture] = [
        picture("JPEG", (side, side), number) for number, side in enumerate(sides)
    ]
    contents[5], contents[7] = b"broken", UnreadablePicture("none")
    items = [Item({"file_name": f"{n}.jpg"}, content) for n, content in enumerate(contents)]
    found = list(read(items))
    assert [each.row["file_name"] for each in found] == [f"{n}.jpg" for n in range(len(items))]
    for number, each in enumerate(found):
        assert (each.error is not None) == (number in (5, 7))
        if each.error is None:
            assert each.pixels.shape == (sides[number], sides[number], 3)
            assert abs(int(each.pixels[0, 0, 0]) - number) <= 1
            assert each.later is None


def test_pixels_in_memory_stay_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 pictures of 4 megapixels: before, all that are read ahead were decoded at once."""
    content = picture(size=(2048, 2048))
    decoded = 0
    taken = 0

    def counting(source: bytes, suffix: str) -> Any:
        nonlocal decoded
        decoded += 2048 * 2048
        return np.broadcast_to(np.zeros(3, np.uint8), (2048, 2048, 3))

    monkeypatch.setattr(reading, "read_pixels", counting)
    for _ in read([Item({"file_name": "a.png"}, content)] * 24):
        # Two parts of PIXELS_AT_ONCE each, and those that are left over by one of them.
        assert decoded - taken <= 2 * PIXELS_AT_ONCE + LARGE_PIXELS
        taken += 2048 * 2048
    assert taken == decoded


def test_a_picture_without_memory_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pictures beside it have taken is free again later; if not, the row is lost alone."""
    tries: dict[int, int] = {}

    def scarce(source: bytes, suffix: str) -> Any:
        tries[len(source)] = tries.get(len(source), 0) + 1
        if len(source) == 1 or (len(source) == 2 and tries[2] < 2):
            raise OutOfMemory
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(reading, "read_pixels", scarce)
    found = list(read([Item({"file_name": "a.png"}, b"x" * n) for n in (1, 2, 3)]))
    assert [each.error for each in found] == ["needs more memory than there is", None, None]


@pytest.mark.parametrize("side", [256, 1024, 3000, 5000])
def test_a_batch_is_bounded_by_pixels(side: int) -> None:
    """And holds one picture at least."""
    pixels = np.broadcast_to(np.zeros(3, np.uint8), (side, side, 3))
    pictures = (ScoredPicture({}, pixels=pixels) for _ in range(130))
    sizes = [len(batch) for batch in _by_shape(pictures, 64)]
    assert max(sizes) == min(64, max(1, BATCH_PIXELS // side**2))
    assert sum(sizes) == 130


def test_many_large_shapes_do_not_pile_up() -> None:
    """Four batches' pixels may wait, of which each picture here is a hundredth."""
    side = 400
    read_so_far = 0

    def pictures() -> Iterator[ScoredPicture]:
        nonlocal read_so_far
        for read_so_far in range(1, 901):
            pixels = np.broadcast_to(np.zeros(3, np.uint8), (side, side + read_so_far % 450, 3))
            yield ScoredPicture({"n": read_so_far}, pixels=pixels)

    taken = 0
    for batch in _by_shape(pictures(), 64):
        taken += len(batch)
        assert (read_so_far - taken) * side * side <= 4 * BATCH_PIXELS
    assert taken == 900


@pytest.mark.slow
def test_a_large_picture_that_no_memory_is_left_for_costs_its_own_row(tmp_path: Path) -> None:
    """The reward stands for a machine that is too small; a usual batch is an error there."""
    large = picture("JPEG", (4200, 4200), 30)
    (tmp_path / "b.jpg").write_bytes(large)
    for name in ("a", "c"):
        (tmp_path / f"{name}.png").write_bytes(picture())

    def needs(limit: int) -> Callable[[Tensor, Sequence[str]], Tensor]:
        def reward(media: Tensor, prompts: Sequence[str]) -> Tensor:
            if media.numel() > limit:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
            return level(media, prompts)

        return reward

    table = score(tmp_path, {"level": {"name": needs(3 * BATCH_PIXELS)}})
    assert table.heads["level"] == [10, None, 10]
    assert table.errors[1] == "needs more memory than there is"
    with pytest.raises(RuntimeError, match="allocate memory"):
        score(tmp_path, {"level": {"name": needs(0)}})


# --- bombs under a limit of memory ----------------------------------------------------------------


def black(folder: Path, count: int) -> None:
    content = picture(size=(8192, 8192), level=0)
    for number in range(count):
        (folder / f"m{number}.png").write_bytes(content)


def in_folder(content: Callable[[Path], None]) -> Callable[[Path], str]:
    """A gallery of two good pictures, with bombs between them."""

    def make(folder: Path) -> str:
        for name in ("a.png", "z.png"):
            (folder / name).write_bytes(picture())
        content(folder)
        return "."

    return make


def packed(*parts: bytes) -> Callable[[Path], str]:
    """A shard of a good sample, with headers and 300 MB of zeros behind it."""

    def make(folder: Path) -> str:
        with gzip.open(folder / "x.tar", "wb", 1) as file:
            file.write(tar([("a.png", picture())])[:1024] + b"".join(parts))
            for _ in range(300):
                file.write(bytes(2**20))
        return "x.tar"

    return make


def header(kind: bytes, name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(format=tarfile.GNU_FORMAT)


def one_value(folder: Path) -> str:
    """100 MB of zeros, to which all rows but the first point."""
    values = pa.array([picture(), bytes(10**8)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] + [1] * 50, pa.int32()), values)
    options = {"compression": "zstd", "write_statistics": False}
    pq.write_table(pa.table({"image": column}), folder / "x.parquet", **options)
    return "x.parquet"


# name -> makes the files, and gives what is scored; and how many rows have a score at least.
BOMBS: dict[str, tuple[Callable[[Path], str], int]] = {
    "pictures of 64 megapixels": (in_folder(lambda folder: black(folder, 1)), 2),
    "a large picture": (packed(header(tarfile.REGTYPE, "b.png", 2**28 - 1)), 1),
    "large texts": (packed(header(tarfile.REGTYPE, "b.png", 0), header(b"0", "b.txt", 2**28)), 1),
    "a value of 100 MB": (one_value, 0),
}

CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from align_gen.galleries.scoring import score

def first_pixel(media, prompts):
    return media[:, 0, 0, 0]

# Everything is imported and every thread has run before memory becomes scarce.
torch.set_num_threads(2)
score(sys.argv[1], {"reward": {"name": first_pixel}})
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
for source in sys.argv[2:]:
    table = score(source, {"reward": {"name": first_pixel}})
    print(json.dumps([table.heads["reward"], table.errors]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="wants /proc")
def test_bombs_cost_their_own_rows_under_a_limit_of_memory(tmp_path: Path) -> None:
    """A gigabyte above what the libraries take: no file of less than 5 MB takes the job down."""
    sources = []
    for number, (make, _) in enumerate(BOMBS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        sources.append(folder / make(folder))
        assert max(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.png").write_bytes(picture())

    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "good", *sources],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-800:]
    for case, line in zip(BOMBS, done.stdout.splitlines(), strict=True):
        scores, errors = json.loads(line)
        good = [score for score in scores if score == pytest.approx(10 / 255)]
        assert len(good) == BOMBS[case][1], (case, errors)
        assert [error is None for error in errors] == [score is not None for score in scores]
