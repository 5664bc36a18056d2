"""Galleries: exact round trips, hostile folders, broken pictures, writes killed at every step."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_gen.errors import UserError
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.gallery import Gallery, skipped_files, write_gallery
from align_gen.galleries.media import read_picture


def grey(*levels: int, size: int = 2) -> torch.Tensor:
    """(len(levels), 3, size, size), each filled with level / 255."""
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, size, size)


def folder_of(path: Path, *lines: str | bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "metadata.jsonl").write_bytes(
        b"\n".join(x.encode() if isinstance(x, str) else x for x in lines)
    )
    return path


def test_writing_and_reading_keeps_every_pixel_and_row(tmp_path: Path) -> None:
    media = torch.randint(0, 256, (3, 3, 5, 7)) / 255  # what 8 bits can hold, so nothing may change
    rows: list[dict[str, Any]] = [
        {"prompt": "a cat\u2028on a mat", "seed": 1},
        {"prompt": "", "seed": 2},
        {"prompt": "猫", "extra": [0.1]},
    ]
    write_gallery(tmp_path / "new" / "g", media, rows)
    gallery = Gallery.load(tmp_path / "new" / "g")
    assert gallery.rows == [row | {"file_name": f"{n:05d}.png"} for n, row in enumerate(rows)]
    assert len(gallery) == 3
    assert all(torch.equal(gallery.image(n), media[n]) for n in range(3))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["g"]  # nothing temporary left


def test_pixels_are_rounded_to_the_nearest_of_255(tmp_path: Path) -> None:
    """0.499 * 255 = 127.2 and 0.501 * 255 = 127.8; truncation would make both 127."""
    gallery = write_gallery(
        tmp_path / "g", torch.tensor([0.499, 0.501, 1.0]).view(1, 3, 1, 1), [{}]
    )
    assert gallery.image(0).mul(255).round().flatten().tolist() == [127, 128, 255]


def test_a_folder_of_pictures_alone_has_names_only(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert Gallery.load(tmp_path).rows == [
        {"file_name": "a.png"},
        {"file_name": "b.JPG"},
        {"file_name": "c.webp"},
    ]


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/x.png", "in/../../x.png", "in/../x.png", "", 3, None, "a\0.png"]
)
def test_a_file_name_may_not_leave_the_folder(tmp_path: Path, name: object) -> None:
    folder = folder_of(tmp_path / "g", '{"file_name": "a.png"}', json.dumps({"file_name": name}))
    with pytest.raises(UserError, match=r"metadata\.jsonl line 2: file_name"):
        Gallery.load(folder)


def test_links_may_stay_inside_but_not_lead_out(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "white").save(tmp_path / "secret.png")
    folder = folder_of(tmp_path / "g", '{"file_name": "link.png"}')
    Image.new("RGB", (1, 1)).save(folder / "real.png")
    (folder / "link.png").symlink_to("real.png")
    assert Gallery.load(folder).image(0).sum() == 0

    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"link\.png.*leaves the folder"):
        Gallery.load(folder)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"link\.png.*leaves the folder"):
        Gallery.load(folder)

    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leaves the folder"):
        Gallery.load(folder_of(folder, '{"file_name": "up/secret.png"}'))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "3",
        b"\xff\xfe",
        '{"file_name": "\\ud800.png"}',
        '{"a": ' * 10_000,
        '{"file_name":"a.png","prompt":3}',
    ],
    ids=["cut", "list", "number", "no utf-8", "half a surrogate", "deep", "prompt"],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str | bytes) -> None:
    folder = folder_of(tmp_path / "g", '{"file_name": "a.png"}', "", line)
    with pytest.raises(UserError, match=r"g/metadata\.jsonl line 3: ") as caught:
        Gallery.load(folder)
    assert "\n" not in str(caught.value)


def test_nothing_to_read_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Gallery.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no pictures"):
        Gallery.load(tmp_path)
    with pytest.raises(UserError, match="no pictures"):
        Gallery.load(folder_of(tmp_path / "g", "", " "))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    """Black at opacity 128/255 on white: 255 - 128 = 127. Fully transparent red: white."""
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").mul(255).round()[:, 0].T.tolist() == [
        [127] * 3,
        [255] * 3,
    ]


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    """Orientation 6: stored red, green from left to right; shown a quarter turn clockwise: red
    above green.
    """
    picture = Image.new("RGB", (2, 1), (255, 0, 0))
    picture.putpixel((1, 0), (0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    shown = read_picture(tmp_path / "a.png")
    assert shown.shape == (3, 2, 1)
    assert shown[:, :, 0].T.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    """65535 is white and 128 * 257 is 128/255; clipping at 255 would make both white."""
    Image.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 128 * 257, 65535)).save(
        tmp_path / "a.png"
    )
    assert read_picture(tmp_path / "a.png")[0, 0].mul(255).round().tolist() == [0, 128, 255]


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 1000) + b"IDAT"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + data
    )


def broken(path: Path, kind: str) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    match kind:
        case "truncated":
            path.write_bytes(path.read_bytes()[:2000])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("<html>")
        case "another format":
            Image.new("RGB", (2, 2)).save(path, "GIF")
        case "big":
            path.write_bytes(png_header(9000, 9000))  # 81 megapixels
        case "bomb":
            path.write_bytes(png_header(10**5, 10**5))
        case "folder" | "missing" | "pipe":
            path.unlink()
            if kind != "missing":
                (os.mkfifo if kind == "pipe" else os.mkdir)(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated"),
        ("empty", "not a PNG, JPEG or WebP picture"),
        ("text", "not a PNG, JPEG or WebP picture"),
        ("another format", "not a PNG, JPEG or WebP picture"),
        ("big", "9000x9000 is more than"),
        ("bomb", "DecompressionBomb"),
        ("folder", "no such file"),
        ("missing", "no such file"),
        ("pipe", "no such file"),
    ],
)
def test_unreadable_pictures_say_why(tmp_path: Path, kind: str, reason: str) -> None:
    broken(tmp_path / "a.png", kind)
    with pytest.raises(UnreadablePicture, match=reason) as caught:
        read_picture(tmp_path / "a.png")
    assert str(tmp_path) not in str(caught.value)


def test_an_unknown_kind_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match=r"'\.mp4' is not one of \.png"):
        read_picture(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("media", "says"),
    [
        (torch.zeros(2, 4, 2, 2), "want"),
        (torch.zeros(3, 2, 2), "want"),
        (torch.zeros(0, 3, 2, 2), "none of them 0"),
        (torch.full((2, 3, 2, 2), float("nan")), "finite"),
        (torch.full((2, 3, 2, 2), -1.0), "-1.0"),
        (torch.zeros(1, 3, 2, 2), "2 rows for 1 pictures"),
    ],
)
def test_wrong_media_write_nothing(tmp_path: Path, media: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_gallery(tmp_path / "g", media, [{}, {}])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_videos_come_back(tmp_path: Path) -> None:
    """Two of five frames, a square that moves over a ramp of grey; H.264 at this quality is within
    3 % of it.
    """
    video = torch.linspace(0, 1, 32).expand(2, 5, 3, 16, 32).clone()
    for frame in range(5):
        video[:, frame, :, 4:12, 4 * frame : 4 * frame + 8] = 0.8
    rows = [{"prompt": "one", "seed": 1}, {"prompt": "two", "seed": 2}]
    gallery = write_gallery(tmp_path / "g", video, rows)
    assert [row["file_name"] for row in gallery.rows] == ["00000.mp4", "00001.mp4"]
    for index in range(2):
        found = Gallery.load(tmp_path / "g").media(index)
        assert found.shape == (5, 3, 16, 32) and found.dtype == torch.float32
        assert (found - video[index]).abs().mean() < 0.03


def test_batches_are_written_as_they_come(tmp_path: Path) -> None:
    """The second batch is not made before the first is on disk."""

    def batches() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, 3, 4, 4)
        assert sorted(path.name for path in tmp_path.glob("*/0*")) == ["00000.png", "00001.png"]
        yield torch.ones(1, 3, 4, 4)

    gallery = write_gallery(tmp_path / "g", batches(), [{}, {}, {}])
    assert [gallery.image(index).mean().item() for index in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(
    "content", [b"", b"no video at all", b"\x00\x00\x00\x18ftypmp42" + bytes(100)]
)
def test_a_broken_video_says_why(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UnreadablePicture) as caught:
        Gallery.load(tmp_path).media(0)
    assert str(tmp_path) not in str(caught.value)


def test_only_mp4_is_read_as_a_video(tmp_path: Path) -> None:
    """A list that leads ffmpeg to another file, under the name of a video."""
    write_gallery(tmp_path / "g", torch.zeros(1, 5, 3, 16, 16), [{}])
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/g/00000.mp4\n")
    with pytest.raises(UnreadablePicture):
        Gallery.load(tmp_path).media(0)


def test_a_video_of_too_many_pixels_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = write_gallery(tmp_path / "g", torch.zeros(1, 5, 3, 16, 16), [{}])
    monkeypatch.setattr("align_gen.galleries.media.MAX_VIDEO_PIXELS", 16 * 16 * 4)
    with pytest.raises(UnreadablePicture, match="more than 1024 pixels in all frames"):
        gallery.media(0)


def test_a_folder_that_is_no_gallery_of_ours_is_never_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "g", '{"file_name": "thesis.png"}')
    (folder / "thesis.png").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.png"):
        write_gallery(folder, grey(0), [{}])
    assert (folder / "thesis.png").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file"):
        write_gallery(folder / "thesis.png", grey(0), [{}])
    with pytest.raises(UserError, match="cannot be written"):
        write_gallery(folder / "thesis.png" / "below", grey(0), [{}])


def test_a_gallery_is_replaced_with_its_scores(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    write_gallery(folder, grey(1, 2, 3), [{}, {}, {}])
    (folder / "scores.parquet").write_text("of the old pictures")
    write_gallery(folder, grey(4), [{}])
    assert sorted(p.name for p in folder.iterdir()) == ["00000.png", "metadata.jsonl"]


class Killed(BaseException):
    """Nothing of ours runs after it: every later call of the operating system fails too."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From the given call on, renames, syncs and removals do not happen; returns a counter of the
    calls.
    """
    calls = 0

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= step:
                raise Killed
            return real(*args, **options)

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, guard(getattr(module, name)))
    return lambda: calls


@pytest.mark.slow
def test_a_write_killed_anywhere_leaves_the_old_or_the_new_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture is filled with one level, so a gallery shows which it is: old (10, 20) or new
    (30,).
    """
    with monkeypatch.context() as patch:
        counter = killed_at(10**9, patch)
        write_gallery(tmp_path / "g", grey(10, 20), [{}, {}])
        write_gallery(tmp_path / "g", grey(30), [{}])
        steps = counter()
    assert steps > 8
    seen = set()
    for step in range(1, steps):
        folder = tmp_path / str(step)
        write_gallery(folder, grey(10, 20), [{}, {}])
        for again in (
            step,
            4,
        ):  # the second write starts from what the first left, and is killed early on
            with monkeypatch.context() as patch, contextlib.suppress(Killed):
                killed_at(again, patch)
                write_gallery(folder, grey(30), [{}])
            found = Gallery.load(folder)
            levels = tuple(round(found.image(n).mean().item() * 255) for n in range(len(found)))
            assert levels in {(10, 20), (30,)}
            seen.add(levels)
        assert len(write_gallery(folder, grey(40), [{}])) == 1  # and the next write goes through
        assert not list(tmp_path.glob(f".{step}.*"))  # and clears the litter
    assert len(seen) == 2


def test_import_is_light() -> None:
    code = (
        "import align_gen.galleries.gallery, sys; "
        "assert not {'torch', 'numpy', 'pyarrow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gallery_is_its_rows_and_gives_pillow_pictures(tmp_path: Path) -> None:
    gallery = write_gallery(tmp_path / "g", grey(0, 255), [{"prompt": "a"}, {"prompt": "b"}])
    assert [row["prompt"] for row in gallery] == ["a", "b"]
    picture = gallery.pil(1)
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (2, 2), (255,) * 3)
    video = grey(0, 255, size=16)[None]
    moving = write_gallery(tmp_path / "v", video, [{}])
    assert moving.pil(0).getpixel((8, 8)) == (0, 0, 0)
    (tmp_path / "g" / "00000.png").write_bytes(b"broken")
    with pytest.raises(UnreadablePicture):
        gallery.pil(0)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    for name in ("b.gif", "c.GIF", "d.heic", "README", ".hidden.gif", "scores.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    counts = {".gif": 2, ".heic": 1, "file": 1, "folder": 1}
    assert skipped_files(tmp_path) == counts
    folder_of(tmp_path, '{"file_name": "a.png"}')
    assert skipped_files(tmp_path) == {}


def test_a_gallery_prints_as_one_short_line() -> None:
    gallery = Gallery(Path("g"), [{"file_name": f"{i}.png"} for i in range(1000)])
    assert repr(gallery) == str(gallery) == "Gallery('g', 1000 rows)"
