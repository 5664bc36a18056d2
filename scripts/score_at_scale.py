"""Measure the memory of scoring as pictures get many, and the size of their report.

    python scripts/score_at_scale.py [--counts 1000 50000] [--rows 100000] [--folder build/scale]

Writes WebDataset shards and a gallery of so many 64 x 64 JPEGs, scores each with emoji-clip and
mean_hue by the command itself, and prints the largest resident memory of its process, seconds, and
bytes of the file. Then a scores file of ``--rows`` rows, and the size of its report without
thumbnails and the seconds to make it.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from align_gen.galleries.gallery import METADATA
from align_gen.galleries.table import ScoresTable

# Different pictures; what is known is not scored again, so each gets a prompt of its own.
KINDS = 64
SHARD = 10_000


def jpegs() -> list[bytes]:
    """Blurred noise."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(KINDS):
        buffer = io.BytesIO()
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def write_shards(folder: Path, count: int, pictures: list[bytes]) -> Path:
    """Tar files of WebDataset, of ``SHARD`` samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:03d}.tar", "w") as archive:
            for number in range(start, min(start + SHARD, count)):
                parts = {
                    "jpg": pictures[number % KINDS],
                    "txt": f"a thing, number {number % 1000}".encode(),
                }
                for extension, content in parts.items():
                    info = tarfile.TarInfo(f"{number:06d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


def write_folder(folder: Path, count: int, pictures: list[bytes]) -> Path:
    """A gallery whose rows share a few files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(pictures):
        (folder / f"{number:02d}.jpg").write_bytes(content)
    with (folder / METADATA).open("w") as file:
        for number in range(count):
            row = {
                "file_name": f"{number % KINDS:02d}.jpg",
                "prompt": f"a thing, number {number % 1000}",
                "seed": number,
            }
            file.write(json.dumps(row) + "\n")
    return folder


def measure(source: Path, out: Path) -> tuple[float, float]:
    """(MiB, seconds) of ``align-gen score``."""
    out.unlink(missing_ok=True)
    rewards = ["--reward", "clip:path=emoji-clip", "--reward", "mean_hue"]
    command = [sys.executable, "-c", MEASURING, "score", str(source), *rewards, "--out", str(out)]
    started = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stderr.splitlines()[-1]) / 1024, time.monotonic() - started


MEASURING = """
import resource, sys
from align_gen.cli import main
main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def report(folder: Path, count: int) -> tuple[float, float]:
    """(megabytes, seconds) of the page of a scores file of so many rows, without its pictures."""
    rows = [
        {"file_name": f"{n}.png", "prompt": f"a thing, number {n % 1000}", "seed": n}
        for n in range(count)
    ]
    scores: dict[str, list[float | None]] = {
        name: np.random.default_rng(0).normal(size=count).tolist() for name in "ab"
    }
    ScoresTable(rows, scores, [None] * count, {}, {}).save(folder / "many.parquet")
    page = folder / "report.html"
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "align_gen",
        "report",
        str(folder / "many.parquet"),
        "--out",
        str(page),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return page.stat().st_size / 1e6, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("build/scale"))
    args = parser.parse_args()
    pictures = jpegs()
    print(f"{'source':10} {'pictures':>9} {'MiB':>7} {'seconds':>8} {'a second':>9}")
    for kind, write in (("shards", write_shards), ("folder", write_folder)):
        for count in args.counts:
            source = write(args.folder / f"{kind}-{count}", count, pictures)
            memory, seconds = measure(source, args.folder / f"{kind}-{count}.parquet")
            print(
                f"{kind:10} {count:9d} {memory:7.0f} {seconds:8.1f} {count / seconds:9.0f}",
                flush=True,
            )
    size, seconds = report(args.folder, args.rows)
    print(f"report of {args.rows} rows: {size:.1f} MB in {seconds:.1f} s")


if __name__ == "__main__":
    main()
