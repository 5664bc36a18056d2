"""Scoring: order, batches, workers and null rows; what was scored once is not scored again; memory,
kills, processes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from align_gen import bundled
from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.galleries.scored import ScoredPicture
from align_gen.galleries.scoring import score, score_file, scores_path
from align_gen.galleries.table import ScoresTable
from align_gen.galleries.workers import _by_shape
from align_gen.reward_heads import RewardHead

ROOT = Path(__file__).parents[3]


def mean_level(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean pixel, in 255ths."""
    return (media.mean((1, 2, 3)) * 255).round()


def prompt_number(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.tensor([float(prompt) for prompt in prompts])


def levels(folder: Path, *values: int, size: int = 4) -> Gallery:
    """A gallery of pictures filled with the values; the prompt is the value."""
    media = (torch.tensor(values) / 255).view(-1, 1, 1, 1).expand(-1, 3, size, size)
    return write_gallery(
        folder, media, [{"prompt": str(v), "seed": n} for n, v in enumerate(values)]
    )


def mixed_shapes(folder: Path, count: int) -> Gallery:
    """Row n: filled with n, prompt n, side 2 to 4 in turn."""
    gallery = levels(folder, *range(count))
    for n, row in enumerate(gallery.rows):
        side = levels(folder.parent / f"one-{n}", n, size=2 + n % 3)
        os.replace(side.path(0), folder / row["file_name"])
    return gallery


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_rows_keep_their_order_over_shapes_and_batches(tmp_path: Path, batch_size: int) -> None:
    """Picture and prompt n are both n, so both heads give n in row n, whatever the batches were."""
    batches: list[int] = []

    def watched(media: Tensor, prompts: Sequence[str]) -> Tensor:
        batches.append(len(media))
        return mean_level(media, prompts)

    table = score(
        mixed_shapes(tmp_path / "g", 13),
        {"pixel": {"name": watched}, "text": {"name": prompt_number}},
        batch_size=batch_size,
    )
    assert table.heads == {"pixel": list(range(13)), "text": list(range(13))}
    assert table.errors == [None] * 13
    assert sum(batches) == 13
    assert max(batches) <= batch_size
    assert batch_size > 1 or len(batches) == 13


def test_many_shapes_do_not_pile_up() -> None:
    """No two pictures alike: without a bound, all 100 would be read before the first batch. 4
    batches of 2 may wait.
    """
    read = 0

    def pictures() -> Iterator[ScoredPicture]:
        nonlocal read
        for read in range(1, 101):
            yield ScoredPicture({"n": read}, pixels=np.zeros((1, read, 3), np.uint8))

    batches = []
    for batch in _by_shape(pictures(), 2):
        batches.append(batch)
        assert read - sum(map(len, batches)) < 8
    assert sorted(each.row["n"] for batch in batches for each in batch) == list(range(1, 101))


def test_progress_ends_at_the_total_also_with_broken_pictures(tmp_path: Path) -> None:
    gallery = levels(tmp_path / "g", 1, 2, 3, 4, 5)
    gallery.path(4).write_bytes(b"")
    seen: list[tuple[int, int]] = []

    def note(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        seen.append((done, total))

    score(gallery, [mean_level], batch_size=2, progress=note)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_truncated_picture_is_a_null_row_with_the_reason(tmp_path: Path) -> None:
    noise = torch.rand(3, 3, 32, 32)
    gallery = write_gallery(tmp_path / "g", noise, [{"prompt": "a"}] * 3)
    whole = score(gallery, ["jpeg_size", "mean_hue"])
    gallery.path(1).write_bytes(gallery.path(1).read_bytes()[:1000])
    gallery.path(2).unlink()

    table = score(tmp_path / "g", ["jpeg_size", "mean_hue"])
    for name in ("jpeg_size", "mean_hue"):
        assert table.heads[name] == [whole.heads[name][0], None, None]
    assert table.errors[0] is None
    assert "truncated" in str(table.errors[1])
    assert table.errors[2] == "no such file"
    with pytest.raises(UserError, match=r"00001\.png: .*truncated.* \(and 1 more\)"):
        score(gallery, ["jpeg_size"], strict=True)


def test_all_pictures_broken_is_still_a_table(tmp_path: Path) -> None:
    gallery = levels(tmp_path / "g", 1)
    gallery.path(0).unlink()
    assert score(gallery, [mean_level]).heads == {"mean_level": [None]}


def test_a_head_that_fails_stops_the_scoring(tmp_path: Path) -> None:
    def broken(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(media),), float("nan"))

    with pytest.raises(RuntimeError, match=r"broken.*non-finite"):
        score(levels(tmp_path / "g", 1, 2), [broken])


def test_wrong_rewards_are_the_users_mistake(tmp_path: Path) -> None:
    gallery = levels(tmp_path / "g", 1)

    class Needy:
        required_context = ("source",)

        def __call__(self, media: Tensor, prompts: Sequence[str], source: Any) -> Tensor:
            return torch.zeros(len(media))

    with pytest.raises(UserError, match="jpeg_size"):
        score(gallery, ["nonesuch"])
    with pytest.raises(UserError, match="needs 'source'"):
        score(gallery, [Needy()])
    with pytest.raises(UserError, match="batch_size"):
        score(gallery, [mean_level], batch_size=0)
    with pytest.raises(UserError, match="reward 'seed'"):
        score(gallery, {"seed": {"name": mean_level}})
    assert score(gallery, "jpeg_size").heads.keys() == {"jpeg_size"}  # not a reward for each letter


# --- workers --------------------------------------------------------------------------------------


class Counted(RewardHead):
    """The mean pixel; notes whose thread asked, and for how many pictures."""

    parallel = True

    def __init__(self, options: str = "") -> None:
        self.calls: list[tuple[str, int]] = []
        self.options = options

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        self.calls.append((threading.current_thread().name, len(media)))
        return mean_level(media, prompts)

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"options": self.options}

    @property
    def asked(self) -> int:
        return sum(count for _, count in self.calls)


@pytest.fixture
def two_threads() -> Iterator[None]:
    kept = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(kept)


@pytest.mark.usefixtures("two_threads")
def test_heads_for_threads_run_in_workers_and_others_in_the_callers(tmp_path: Path) -> None:
    """The same scores in the same order; the caller's number of threads is what it was."""
    gallery, head, alone = mixed_shapes(tmp_path / "g", 40), Counted(), Counted()
    alone.parallel = False
    tables = [score(gallery, {"level": {"name": each}}, batch_size=4) for each in (head, alone)]
    assert tables[0].heads == tables[1].heads == {"level": list(range(40))}
    assert all(name.startswith("worker") for name, _ in head.calls)
    assert {name for name, _ in alone.calls} == {threading.current_thread().name}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_head_that_fails_in_a_worker_stops_the_scoring(tmp_path: Path) -> None:
    class Broken(Counted):
        def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
            return torch.full((len(media),), float("nan"))

    with pytest.raises(RuntimeError, match=r"bad.*non-finite"):
        score(levels(tmp_path / "g", *range(50)), {"bad": {"name": Broken()}}, batch_size=2)


@pytest.mark.slow
def test_a_score_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """A real network: alone, in a batch, and among pictures of other sizes, to 1e-4 (and
    better).
    """
    rewards = bundled.reward_spec({"clip": {"path": "emoji-clip"}})
    noise = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gallery = write_gallery(
        tmp_path / "g", noise, [{"prompt": f"a thing, number {n}"} for n in range(9)]
    )
    found = [score(gallery, rewards, batch_size=size).heads["clip"] for size in (1, 2, 9)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)


# --- what is known --------------------------------------------------------------------------------


def test_what_was_scored_is_not_scored_again(tmp_path: Path) -> None:
    """A changed picture, a changed prompt or other options are; a row that moved keeps its
    scores.
    """
    gallery, out = levels(tmp_path / "g", 1, 2, 3, 4), tmp_path / "s.parquet"
    first, second = Counted(), Counted()
    score_file(tmp_path / "g", {"level": {"name": first}}, out)
    assert first.asked == 4
    score_file(tmp_path / "g", {"level": {"name": second}}, out)
    assert second.asked == 0
    assert ScoresTable.load(out).heads["level"] == [1, 2, 3, 4]

    levels(tmp_path / "other", 9)
    os.replace(tmp_path / "other/00000.png", gallery.path(1))  # another picture
    rows = [
        gallery.rows[3],
        {**gallery.rows[0], "prompt": "new words"},
        gallery.rows[1],
        gallery.rows[2],
    ]
    (tmp_path / "g/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_file(tmp_path / "g", {"level": {"name": second}}, out)
    assert second.asked == 2
    assert ScoresTable.load(out).heads["level"] == [4, 1, 9, 3]

    third = Counted("sharper")
    score_file(tmp_path / "g", {"level": {"name": third}}, out)
    assert third.asked == 4
    weighted = Counted("sharper")
    score_file(tmp_path / "g", {"level": {"name": weighted, "weight": 2.0}}, out)
    assert weighted.asked == 4 and ScoresTable.load(out).combined == [8, 2, 18, 6]


def test_a_picture_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    gallery, out = levels(tmp_path / "g", 1, 2), tmp_path / "s.parquet"
    kept = gallery.path(1).read_bytes()
    gallery.path(1).write_bytes(b"")
    found = score_file(tmp_path / "g", {"level": {"name": Counted()}}, out)
    assert found is not None and found.pictures == 2 and found.means == {"level": 1.0}
    assert [name for name, _ in found.failed] == ["00001.png"]
    gallery.path(1).write_bytes(kept)
    again = score_file(tmp_path / "g", {"level": {"name": Counted()}}, out)
    assert again is not None and (again.means, again.failed) == ({"level": 1.5}, [])


KILLED = """
import os, signal, sys
from pathlib import Path
import align_gen.galleries.scoring as scoring
import align_gen.galleries.workers as workers

workers.CHUNK = 4
asked = 0

def level(media, prompts):
    global asked
    asked += len(media)
    if asked > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return (media.mean((1, 2, 3)) * 255).round()

scoring.score_file(sys.argv[1], {"level": {"name": level}}, Path(sys.argv[2]), batch_size=2)
print(asked)
"""


def run_killed(gallery: Path, out: Path, limit: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", KILLED, str(gallery), str(out), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_a_kill_loses_one_chunk(tmp_path: Path) -> None:
    """Twelve pictures in chunks of 4, killed while the third is scored, then at once: 8 are known,
    4 are left.

    Then the gallery has shrunk: chunks that only the killed run had are not in the file.
    """
    levels(tmp_path / "g", *range(12))
    out = tmp_path / "s.parquet"
    assert run_killed(tmp_path / "g", out, 9).returncode == -signal.SIGKILL
    assert not out.exists()
    assert run_killed(tmp_path / "g", out, 1).returncode == -signal.SIGKILL
    lines = (tmp_path / "g/metadata.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "g/metadata.jsonl").write_text("".join(lines[1:11]))
    done = run_killed(tmp_path / "g", out, 100)
    assert (done.returncode, done.stdout) == (0, "3\n"), (
        done.stderr
    )  # of 12, 0 to 7 were known, 11 is gone
    assert ScoresTable.load(out).heads["level"] == list(range(1, 11))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "s.parquet"]


@pytest.mark.slow
def test_two_processes_share_the_chunks(tmp_path: Path) -> None:
    """The command itself, started as accelerate does: one file, the same as one process's but for
    the time.
    """
    levels(tmp_path / "g", *range(11))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "align_gen",
    ]
    arguments = [
        "score",
        str(tmp_path / "g"),
        "--reward",
        "mean_hue",
        "--reward",
        "jpeg_size",
        "--out",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, *arguments, str(tmp_path / "two.parquet")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("11 of 11 pictures scored") == 1
    score_file(tmp_path / "g", ["mean_hue", "jpeg_size"], tmp_path / "one.parquet")
    one, two = (ScoresTable.load(tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert one == two


# --- prompts --------------------------------------------------------------------------------------


class Reader(Counted):
    """A head that reads the prompt: its length."""

    reads_prompt = True

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        self.calls.append(("", len(media)))
        return torch.tensor([float(len(prompt)) for prompt in prompts])


@pytest.mark.parametrize("last", [{}, {"prompt": " "}, {"label": "pets", "text": ""}], ids=str)
def test_a_head_that_reads_prompts_wants_one_of_every_picture(
    tmp_path: Path, last: dict[str, str]
) -> None:
    """Refused before anything is scored, with the columns that there are; others score it."""
    gallery = levels(tmp_path / "g", 1, 2)
    rows = [gallery.rows[0], {"file_name": "00001.png", **last}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (gallery.folder / "metadata.jsonl").write_text(lines)
    head = Reader()
    for source in (gallery.folder, Gallery.load(gallery.folder)):
        with pytest.raises(UserError, match=r"00001\.png has no prompt, which reward"):
            score(source, {"words": {"name": head}})
        with pytest.raises(UserError, match=f"there are: .*{max(last, default='file_name')}"):
            score_file(source, {"words": {"name": head}}, tmp_path / "s.parquet")
    assert head.asked == 0 and not (tmp_path / "s.parquet").exists()
    assert len(score(gallery.folder, [mean_level]).rows) == 2


def test_a_caption_is_a_prompt(tmp_path: Path) -> None:
    """In metadata of either kind, and in shards; a broken picture needs none."""
    gallery = levels(tmp_path / "g", 1, 2)
    (gallery.folder / "metadata.jsonl").unlink()
    table = "file_name,text\n00000.png,four\n00001.png,fifteen letters\n"
    (gallery.folder / "metadata.csv").write_text(table)
    found = score(gallery.folder, {"words": {"name": Reader()}})
    assert found.heads["words"] == [4, 15]
    assert [row["prompt"] for row in found.rows] == ["four", "fifteen letters"]

    pictures = [gallery.path(n).read_bytes() for n in range(2)]
    shard = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": pictures, "caption": ["four", "fifteen letters"]}), shard)
    assert score(shard, {"words": {"name": Reader()}}).heads["words"] == [4, 15]
    pq.write_table(pa.table({"image": [b"", *pictures], "other": ["a", "b", "c"]}), shard)
    with pytest.raises(UserError, match="has no prompt, which reward 'words' reads"):
        score(shard, {"words": {"name": Reader()}})


# --- where to, and what was left out --------------------------------------------------------------


def test_files_of_a_folder_that_are_no_pictures_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    gallery = levels(folder, 1, 2)
    (folder / "metadata.jsonl").unlink()
    (folder / "b.gif").touch()
    (folder / "sub").mkdir()
    (folder / "more").mkdir()
    summary = score_file(folder, {"level": {"name": mean_level}}, tmp_path / "s.parquet")
    assert summary is not None and summary.pictures == 2
    assert summary.skipped == {".gif": 1, "folder": 2}
    assert summary.skipped_text() == "1 .gif, 2 folders"
    (folder / "metadata.jsonl").write_text('{"file_name": "00000.png"}\n')
    again = score_file(folder, {"level": {"name": mean_level}}, tmp_path / "s.parquet")
    assert again is not None and again.skipped_text() == ""
    assert len(gallery) == 2


def test_scores_are_parquet_whatever_they_are_to_be_called(tmp_path: Path) -> None:
    """Refused before any picture is scored."""
    levels(tmp_path / "g", 1)
    head = Counted()
    with pytest.raises(UserError, match=r"want a name that ends in \.parquet"):
        score_file(tmp_path / "g", {"level": {"name": head}}, tmp_path / "scores.csv")
    assert head.asked == 0
    assert score_file(tmp_path / "g", {"level": {"name": head}}, tmp_path / "plain") is not None
    assert ScoresTable.load(tmp_path / "plain").heads == {"level": [1.0]}


def test_the_file_of_scores_is_in_the_gallery_or_named(tmp_path: Path) -> None:
    levels(tmp_path / "g", 1)
    assert scores_path(tmp_path / "g") == tmp_path / "g" / "scores.parquet"
    assert scores_path("nosuch", Path("s.parquet")) == Path("s.parquet")
    with pytest.raises(UserError, match=r"^nosuch: no such folder or file"):
        scores_path("nosuch")
    for shard in ("s3://bucket/x.tar", "datasets:name", "*.tar"):
        with pytest.raises(UserError, match="want --out FILE"):
            scores_path(shard)
    with pytest.raises(UserError, match=r"want a name that ends in \.parquet"):
        scores_path(tmp_path / "g", Path("scores.csv"))


def test_a_bundled_model_of_a_reward_goes_by_its_name(tmp_path: Path) -> None:
    """As on the command line: its scores are those of the folder it stands for."""
    gallery = levels(tmp_path / "g", 10, size=32)
    by_name = score(gallery, {"clip": {"path": "emoji-clip"}})
    by_path = score(gallery, {"clip": {"path": bundled.model_path("emoji-clip")}})
    assert by_name.heads == by_path.heads
