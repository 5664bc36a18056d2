"""Where pictures come from: the same pictures through every door get the same scores, and damage
loses only itself.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from align_gen.errors import UserError
from align_gen.galleries.formats import MAX_BYTES
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.galleries.scoring import score, score_file
from align_gen.galleries.sources import open_source

PROMPTS = ["a red thing", "a blue thing", "猫"]


def level(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean pixel in 255ths, and the length of the prompt after the point."""
    levels = (media.flatten(1).mean(1) * 255).round()
    return levels + torch.tensor([len(prompt) / 100 for prompt in prompts])


EXPECTED = [10.11, 20.12, 30.01]


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    media = (torch.tensor([10, 20, 30]) / 255).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return write_gallery(tmp_path / "gallery", media, [{"prompt": prompt} for prompt in PROMPTS])


def pictures(gallery: Gallery) -> list[bytes]:
    return [gallery.path(index).read_bytes() for index in range(len(gallery))]


def scores(source: Any) -> list[float | None]:
    return score(source, {"level": {"name": level}}).heads["level"]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path: Path, gallery: Gallery) -> Path:
    members = []
    for number, content in enumerate(pictures(gallery)):
        members += [(f"{number:03d}.png", content), (f"{number:03d}.txt", PROMPTS[number].encode())]
        members += [
            (f"{number:03d}.json", json.dumps({"seed": number, "sha256": "theirs"}).encode())
        ]
    return write_tar(path, members)


def test_a_folder_with_and_without_metadata(gallery: Gallery, tmp_path: Path) -> None:
    assert (
        scores(gallery.folder)
        == scores(str(gallery.folder))
        == scores(gallery)
        == pytest.approx(EXPECTED)
    )
    assert scores(f"file://{gallery.folder}") == pytest.approx(EXPECTED)
    (gallery.folder / "metadata.jsonl").unlink()
    assert scores(gallery.folder) == [10, 20, 30]


def test_a_shard_of_webdataset(gallery: Gallery, tmp_path: Path) -> None:
    """Texts beside a picture are its prompt and columns; one named as a column of the scores gets
    another name.
    """
    table = score(shard(tmp_path / "a.tar", gallery), {"level": {"name": level}})
    assert table.heads["level"] == pytest.approx(EXPECTED)
    assert table.rows[2] == {
        "prompt": "猫",
        "seed": 2,
        "sha256_": "theirs",
        "file_name": "a.tar/002.png",
    }


def test_shards_of_a_folder_or_a_pattern_come_in_order(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("b.tar", "a.tar"):
        shard(tmp_path / "shards" / name, gallery)
    for source in (tmp_path / "shards", tmp_path / "shards" / "*.tar"):
        assert [item.row["file_name"][:5] for item in open_source(source)] == ["a.tar"] * 3 + [
            "b.tar"
        ] * 3
        assert scores(source) == pytest.approx(EXPECTED * 2)


def test_a_shard_that_was_cut_loses_only_the_rest(gallery: Gallery, tmp_path: Path) -> None:
    """Members take 512 bytes of header and their content in blocks of 512; the cut is in the second
    picture.
    """
    whole = shard(tmp_path / "a.tar", gallery).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        start = archive.getmember("001.png").offset_data
    (tmp_path / "a.tar").write_bytes(whole[: start + 20])
    table = score(tmp_path / "a.tar", {"level": {"name": level}})
    assert table.heads["level"] == [pytest.approx(10.11), None]
    assert "the shard is damaged" in str(table.errors[1])


def test_a_shard_writes_nothing_whatever_its_members_are_called(
    gallery: Gallery, tmp_path: Path
) -> None:
    """Escapes, links and devices are names of rows at most."""
    path, content = tmp_path / "in" / "a.tar", pictures(gallery)[0]
    path.parent.mkdir()
    write_tar(path, [("../../escape.png", content), ("/etc/absolute.png", content)])
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    assert scores(path) == [10, 10]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_that_claims_to_be_huge_costs_its_own_row(
    gallery: Gallery, tmp_path: Path
) -> None:
    """Its bytes are not there, so the shard also ends early."""
    info = tarfile.TarInfo("b.png")
    info.size = MAX_BYTES + 1
    good = write_tar(tmp_path / "a.tar", [("a.png", pictures(gallery)[0])]).read_bytes()
    (tmp_path / "a.tar").write_bytes(good[:1024] + info.tobuf() + b"\0" * 10240)
    table = score(tmp_path / "a.tar", {"level": {"name": level}})
    assert table.heads["level"] == [10, None, None]
    assert table.errors[1] == f"'b.png' is larger than {MAX_BYTES} bytes"
    assert "the shard is damaged" in str(table.errors[2])


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_with_bytes_or_with_the_datasets_librarys_pictures(
    gallery: Gallery, tmp_path: Path, kind: str
) -> None:
    content: list[Any] = pictures(gallery)
    if kind == "struct":
        content = [{"bytes": each, "path": f"{number}.png"} for number, each in enumerate(content)]
    columns = {"image": content, "caption": PROMPTS, "likes": [1, 2, 3], "nested": [[1], [2], [3]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert source.total == 3
    table = score(tmp_path / "a.parquet", {"level": {"name": level}})
    assert table.heads["level"] == pytest.approx(EXPECTED)
    assert table.rows[0] == {
        "prompt": PROMPTS[0],
        "caption": PROMPTS[0],
        "likes": 1,
        "file_name": "a.parquet/000000.png",
    }


def test_kinds_are_told_by_their_first_bytes(gallery: Gallery, tmp_path: Path) -> None:
    from PIL import Image

    content = []
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.open(gallery.path(1)).save(buffer, kind, quality=95)
        content.append(buffer.getvalue())
    pq.write_table(pa.table({"image": [*content, b"nonsense", None]}), tmp_path / "a.parquet")
    table = score(tmp_path / "a.parquet", {"level": {"name": level}})
    assert table.heads["level"][:3] == pytest.approx([20, 20, 20], abs=1)
    assert [str(row["file_name"])[-4:] for row in table.rows] == [
        ".png",
        ".jpg",
        "webp",
        ".png",
        ".png",
    ]
    assert (
        table.errors[3] == "not a PNG, JPEG or WebP picture"
        and table.errors[4] == "the row has no picture"
    )


def test_urls_of_folders_shards_and_parquet(gallery: Gallery, tmp_path: Path) -> None:
    """A filesystem in memory and a zip stand for any that fsspec knows; nothing comes through the
    local disk.
    """
    memory = fsspec.filesystem("memory")
    for file in gallery.folder.iterdir():
        memory.pipe(f"/bucket/g/{file.name}", file.read_bytes())
    memory.pipe("/bucket/a.tar", shard(tmp_path / "a.tar", gallery).read_bytes())
    pq.write_table(
        pa.table({"image": pictures(gallery), "prompt": PROMPTS}), tmp_path / "a.parquet"
    )
    memory.pipe("/bucket/a.parquet", (tmp_path / "a.parquet").read_bytes())
    for name in ("g", "a.tar", "a.parquet"):
        assert scores(f"memory://bucket/{name}") == pytest.approx(EXPECTED), name
    memory.rm("/bucket/g/metadata.jsonl")
    assert scores("memory://bucket/g") == [10, 20, 30]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tar", "deep/a.tar")
    assert scores(f"zip://deep/a.tar::{tmp_path / 'a.zip'}") == pytest.approx(EXPECTED)


@pytest.mark.parametrize("root", ["g", "deep/g", ""])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_folder_in_a_zip(gallery: Gallery, tmp_path: Path, root: str, metadata: bool) -> None:
    """A URL in a URL, at a place of its own in the inner one."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in gallery.folder.iterdir():
            if metadata or file.name != "metadata.jsonl":
                archive.write(file, f"{root}/{file.name}" if root else file.name)
    expected = EXPECTED if metadata else [10, 20, 30]
    assert scores(f"zip://{root}::{tmp_path / 'a.zip'}") == pytest.approx(expected)
    fsspec.filesystem("memory").pipe("/zips/a.zip", (tmp_path / "a.zip").read_bytes())
    assert scores(f"zip://{root}::memory://zips/a.zip") == pytest.approx(expected)


def test_files_at_a_url_are_read_no_further_than_the_limit(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros are packed to a thousandth; the limit is set low, as the true one takes long."""
    monkeypatch.setattr("align_gen.galleries.items.MAX_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gallery.path(0), "g/0.png")
        archive.writestr("g/1.png", bytes(1_000_000))
    table = score(f"zip://g::{tmp_path / 'a.zip'}", {"level": {"name": level}})
    assert table.heads["level"] == [10, None]
    assert table.errors[1] == "larger than 10000 bytes"


def test_metadata_of_endless_lines_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    """A sparse file claims 20 GB and takes no room; here and at a URL, a line is read no further
    than its limit.
    """
    with open(gallery.folder / "metadata.jsonl", "ab") as file:
        file.truncate(20 * 2**30)
    with pytest.raises(UserError, match=r"metadata\.jsonl line 4: longer than 1048576 bytes"):
        open_source(gallery.folder)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("g/metadata.jsonl", bytes(5_000_000))
    with pytest.raises(UserError, match=r"metadata\.jsonl line 1: longer than 1048576 bytes"):
        open_source(f"zip://g::{tmp_path / 'a.zip'}")


def test_a_column_named_as_the_reward_gets_another_name(gallery: Gallery, tmp_path: Path) -> None:
    """In a shard, the first such sample may be the millionth; nothing that is there is lost."""
    row = {"level": 1, "level_": 2, "sha256": 3, "sha256_": 4}
    members = [("a.png", pictures(gallery)[0]), ("a.json", json.dumps(row).encode())]
    members += [("b.png", pictures(gallery)[1])]
    table = score(write_tar(tmp_path / "a.tar", members), {"level": {"name": level}})
    assert table.heads["level"] == [10, 20]
    renamed = {"level__": 1, "level_": 2, "sha256__": 3, "sha256_": 4}
    assert table.rows == [{**renamed, "file_name": "a.tar/a.png"}, {"file_name": "a.tar/b.png"}]
    columns = {"image": pictures(gallery), **{name: [each] * 3 for name, each in row.items()}}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = score(tmp_path / "a.parquet", {"level": {"name": level}})
    assert table.rows[0] == {**renamed, "file_name": "a.parquet/000000.png"}


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd.png", ""])
def test_a_remote_row_may_not_leave_its_folder(name: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bad/metadata.jsonl", json.dumps({"file_name": name}).encode())
    with pytest.raises(UserError, match=r"metadata\.jsonl line 1: file_name"):
        open_source("memory://bad")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://nothing/here", "cannot be read|no pictures"),
        ("nosuch://bucket/a.tar", "cannot be opened"),
        ("missing.tar", "no such file; want a folder of pictures, .tar or .parquet"),
        ("missing/*.tar", "no such file"),
        ("missing", "no such folder"),
    ],
)
def test_what_is_not_there_is_named(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(source)
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_without_pictures_or_broken_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "size": [1]}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"no column of pictures; want one of image, .* it has \['prompt', 'size'\]"
    ):
        open_source(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read as Parquet"):
        open_source(tmp_path / "b.parquet")


def test_a_dataset_wants_its_library(
    tmp_path: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"wants the datasets library \(pip install"):
            scores("datasets:owner/pictures")
        return
    pq.write_table(
        pa.table({"image": pictures(gallery), "prompt": PROMPTS}), tmp_path / "train.parquet"
    )
    assert scores(f"datasets:{tmp_path}:train") == pytest.approx(EXPECTED)
    with pytest.raises(UserError, match="cannot be loaded"):
        scores(f"datasets:{tmp_path / 'nowhere'}")


# --- videos ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_videos_that_cannot_be_read_are_null_rows_and_the_others_are_scored(tmp_path: Path) -> None:
    """Truncated, empty, without frames, and text by the name of one."""
    media = torch.linspace(0, 1, 5 * 4 * 3 * 32 * 32).view(5, 4, 3, 32, 32)
    gallery = write_gallery(tmp_path / "g", media, [{"prompt": ""}] * 5)
    assert gallery.path(0).suffix == ".mp4"
    whole = gallery.path(1).read_bytes()
    gallery.path(1).write_bytes(whole[: len(whole) // 2])
    gallery.path(2).write_bytes(b"")
    gallery.path(3).write_bytes(whole[: whole.index(b"mdat") + 4])
    gallery.path(4).write_text("no video at all")
    found = score(tmp_path / "g", ["mean_hue"])
    assert found.errors[0] is None and found.heads["mean_hue"][0] is not None
    assert all(found.errors[1:]) and found.heads["mean_hue"][1:] == [None] * 4


@pytest.mark.slow
def test_videos_of_several_sizes_and_lengths_beside_pictures(tmp_path: Path) -> None:
    """Each is scored by itself: the mean level of every one is its own."""
    rows = []
    for number, shape in enumerate([(4, 3, 16, 16), (2, 3, 32, 16), (6, 3, 16, 32)]):
        made = write_gallery(
            tmp_path / f"one-{number}", torch.full((1, *shape), (number + 1) / 5), [{"prompt": ""}]
        )
        (tmp_path / "g").mkdir(exist_ok=True)
        made.path(0).rename(tmp_path / "g" / f"{number}.mp4")
        rows.append({"file_name": f"{number}.mp4", "prompt": ""})
    made = write_gallery(tmp_path / "two", torch.full((1, 3, 16, 16), 0.8), [{"prompt": ""}])
    made.path(0).rename(tmp_path / "g" / "3.png")
    rows.append({"file_name": "3.png", "prompt": ""})
    (tmp_path / "g" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def mean(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return media.mean((1, 2, 3))

    found = score(tmp_path / "g", {"mean": {"name": mean}}).heads["mean"]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.02)


def test_a_file_of_scores_beside_shards(gallery: Gallery, tmp_path: Path) -> None:
    """scores.parquet is what scoring writes there: no source, the next time."""
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / "a.tar", gallery)
    for _ in range(2):
        done = score_file(
            tmp_path / "shards", {"level": {"name": level}}, tmp_path / "shards" / "scores.parquet"
        )
        assert done is not None and done.pictures == 3
