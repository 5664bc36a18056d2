"""Hostile files, as anyone may send them: galleries, recipes, run directories and pipelines.

Every case goes through the command line. None may end in a traceback, run what the file brings,
read or write outside of its folder, or lose the rows beside it. What a case is expected to do
stands beside it.
"""

import io
import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from align_gen.cli import main
from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.prompts import load_prompts
from align_gen.galleries.table import ScoresTable
from align_gen.training.recipe import Recipe

MARK = "sprung"  # a file that code from a file would leave in the folder of the test


class Done:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """The entry point in this process; afterwards nothing has sprung and the neighbour is as it
    was.
    """
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour" / "secret.png").write_bytes(picture(color="red"))

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["align-gen", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        done = Done(code, *capfd.readouterr())
        assert "Traceback" not in done.err + done.out
        assert not list(tmp_path.rglob(f"*{MARK}*"))
        assert [path.name for path in (tmp_path / "neighbour").iterdir()] == ["secret.png"]
        return done

    return run


# --- pictures beside two good ones ----------------------------------------------------------------


def picture(
    form: str = "PNG",
    mode: str = "RGB",
    size: tuple[int, int] = (16, 16),
    color: Any = None,
    **more: Any,
) -> bytes:
    buffer = io.BytesIO()
    made = Image.new(mode, size, color) if color is not None else Image.new(mode, size)
    made.save(buffer, form, **more)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green")]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def with_text(content: str, compressed: bool) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", content, zip=compressed)
    return picture(pnginfo=info)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


EXIF = Image.Exif()
EXIF[0x0112] = 6
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
BOMB = png(
    25000, 25000, chunk(b"IDAT", zlib.compress(bytes(25000 * 3126), 9)), depth=1, color=0
)  # 78 KB, 625 megapixels
# name of the file, content, and what becomes of it
PICTURES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "truncated PNG": ("x.png", lambda: picture(size=(64, 64), color="teal")[:80], "null"),
    "truncated JPEG": ("x.jpg", lambda: picture("JPEG")[:200], "null"),
    "truncated WebP": ("x.webp", lambda: picture("WEBP", size=(64, 64))[:40], "null"),
    "zero bytes": ("x.png", lambda: b"", "null"),
    "zeros": ("x.png", lambda: bytes(5000), "null"),
    "text": ("x.png", lambda: b"hello", "null"),
    "HTML": ("x.png", lambda: b"<html><script>alert(1)</script></html>", "null"),
    "SVG with a script": (
        "x.png",
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        "null",
    ),
    "GIF under another name": ("x.png", lambda: picture("GIF"), "null"),
    "TIFF under another name": ("x.jpg", lambda: picture("TIFF"), "null"),
    "PostScript under another name": (
        "x.png",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "null",
    ),
    "JPEG under PNG's name": ("x.png", lambda: picture("JPEG"), "scored"),
    "CMYK": ("x.jpg", lambda: picture("JPEG", "CMYK"), "scored"),
    "16 bits": ("x.png", lambda: picture(mode="I;16"), "scored"),
    "one bit": ("x.png", lambda: picture(mode="1"), "scored"),
    "palette with transparency": ("x.png", lambda: picture(mode="P", transparency=0), "scored"),
    "alpha": ("x.webp", lambda: picture("WEBP", "RGBA"), "scored"),
    "animated PNG": ("x.png", lambda: animated("PNG"), "scored"),
    "animated WebP": ("x.webp", lambda: animated("WEBP"), "scored"),
    "turned by EXIF": ("x.jpg", lambda: picture("JPEG", exif=EXIF), "scored"),
    "broken EXIF": ("x.jpg", lambda: picture("JPEG", exif=b"Exif\x00\x00garbage"), "scored"),
    "broken colour profile": ("x.png", lambda: picture(icc_profile=b"nonsense"), "scored"),
    "one pixel": ("x.png", lambda: picture(size=(1, 1)), "scored"),
    "a bomb by its header": ("x.png", lambda: png(100_000, 100_000), "null"),
    "a bomb of 625 megapixels in 78 KB": ("x.png", lambda: BOMB, "null"),
    "no width": ("x.png", lambda: png(0, 16), "null"),
    "no data": ("x.png", lambda: png(16, 16), "null"),
    "a flipped bit": ("x.png", lambda: flipped(picture(size=(64, 64), color="teal"), 60), "null"),
    "text chunk of 80 MB in 80 KB": ("x.png", lambda: with_text("a" * 80_000_000, True), "null"),
    "text of a script": ("x.png", lambda: with_text("<script>alert(1)</script>", False), "scored"),
    "truncated video": (
        "x.mp4",
        lambda: b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
        "null",
    ),
    "video of zero bytes": ("x.mp4", lambda: b"", "null"),
    "picture under a video's name": ("x.mp4", picture, "null"),
    "playlist under a video's name": ("x.mp4", lambda: PLAYLIST, "null"),
    "concatenation script under a video's name": (
        "x.mp4",
        lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
        "null",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PICTURES)
def test_a_hostile_picture_costs_its_own_row_alone(
    cli: Callable[..., Done], tmp_path: Path, case: str
) -> None:
    name, content, expected = PICTURES[case]
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(color="blue"))
    (folder / "z.png").write_bytes(picture(color="green"))
    (folder / name).write_bytes(content())
    done = cli("score", folder, "--reward", "jpeg_size")
    assert done.code == 0, done.err
    table = ScoresTable.load(folder / "scores.parquet")
    scores = {
        row["file_name"]: score
        for row, score in zip(table.rows, table.heads["jpeg_size"], strict=True)
    }
    assert scores["a.png"] is not None and scores["z.png"] is not None
    assert (scores[name] is None) == (expected == "null"), table.errors
    reason = table.errors[[row["file_name"] for row in table.rows].index(name)]
    assert (reason is None) == (expected == "scored")
    assert (f"align-gen: {name}: {reason}" in done.err) == (expected == "null")


FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    "link to a file outside": lambda folder, out: (folder / "x.png").symlink_to(out / "secret.png"),
    "link to a folder outside": lambda folder, out: (folder / "x.png").symlink_to(out),
    "link in a circle": lambda folder, out: (folder / "x.png").symlink_to("x.png"),
    "link to a device": lambda folder, out: (folder / "x.png").symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_link_that_leads_out_is_refused(
    cli: Callable[..., Done], tmp_path: Path, case: str
) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    FOLDERS[case](folder, tmp_path / "neighbour")
    done = cli("score", folder, "--reward", "jpeg_size")
    assert done.code == 2 and "x.png" in done.err and done.err.count("\n") == 1
    assert not (folder / "scores.parquet").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_no_picture(cli: Callable[..., Done], tmp_path: Path, kind: str) -> None:
    """A pipe would never end."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "x.png").mkdir() if kind == "folder" else os.mkfifo(folder / "x.png")
    assert cli("score", folder, "--reward", "jpeg_size").code == 0
    assert ScoresTable.load(folder / "scores.parquet").errors == [None, "no such file"]


# --- metadata -------------------------------------------------------------------------------------

GOOD = b'{"file_name": "a.png", "prompt": "good", "seed": 1}\n'
LINES: dict[str, tuple[bytes, str]] = {
    "a name that climbs": (b'{"file_name": "../neighbour/secret.png"}', "refused"),
    "a name that climbs inside": (b'{"file_name": "sub/../../neighbour/secret.png"}', "refused"),
    "an absolute name": (b'{"file_name": "/etc/passwd"}', "refused"),
    "a NUL in a name": (b'{"file_name": "a\\u0000.png"}', "refused"),
    "a name of 5,000 letters": (b'{"file_name": "' + b"x" * 5000 + b'.png"}', "refused"),
    "a number for a name": (b'{"file_name": 3}', "refused"),
    "no name": (b'{"prompt": "x"}', "refused"),
    "an empty name": (b'{"file_name": ""}', "refused"),
    "no JSON": (b"file_name: a.png", "refused"),
    "a list": (b'["a.png"]', "refused"),
    "nesting without end": (b"[" * 100_000, "refused"),
    "half of a surrogate pair": (b'{"file_name": "a.png", "prompt": "\\ud800"}', "refused"),
    "not UTF-8": (b'{"file_name": "a.png", "prompt": "\xff\xfe"}', "refused"),
    "a number for a prompt": (b'{"file_name": "a.png", "prompt": 7}', "refused"),
    "a column named as the reward": (b'{"file_name": "a.png", "jpeg_size": 1}', "refused"),
    "a column for errors": (b'{"file_name": "a.png", "error": "x"}', "refused"),
    "a file that is not there": (b'{"file_name": "gone.png", "prompt": "x"}', "null"),
    "the same file twice": (b'{"file_name": "a.png", "prompt": "again", "seed": 2}', "scored"),
    "the same row twice": (GOOD.strip(), "scored"),
    "NaN and infinity": (b'{"file_name": "a.png", "x": NaN, "y": Infinity, "z": 1e999}', "scored"),
    "an integer of 400 digits": (b'{"file_name": "a.png", "n": ' + b"9" * 400 + b"}", "scored"),
    "newline and script in the prompt": (
        b'{"file_name": "a.png", "prompt": "x\\n</script><script>document.title=1</script>"}',
        "scored",
    ),
    "a prompt of 100,000 letters": (
        b'{"file_name": "a.png", "prompt": "' + b"x" * 100_000 + b'"}',
        "scored",
    ),
    "line separators in the prompt": (
        '{"file_name": "a.png", "prompt": "a\u2028b\u2029c\u0085d"}'.encode(),
        "scored",
    ),
    "names of Python's own": (
        b'{"file_name": "a.png", "__class__": "x", "__proto__": {}}',
        "scored",
    ),
    "lists and objects in columns": (b'{"file_name": "a.png", "x": [1, {"y": null}]}', "scored"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LINES)
def test_hostile_metadata(cli: Callable[..., Done], tmp_path: Path, case: str) -> None:
    """A line that is refused is named, and nothing is written; all others are rows, the good one
    among them.
    """
    line, expected = LINES[case]
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "metadata.jsonl").write_bytes(GOOD + line + b"\n")
    done = cli("score", folder, "--reward", "jpeg_size")
    if expected == "refused":
        assert done.code == 2 and done.err.count("\n") == 1 and len(done.err) < 6000, done.err
        assert not (folder / "scores.parquet").exists()
        return
    assert done.code == 0, done.err
    table = ScoresTable.load(folder / "scores.parquet")
    first, second = table.heads["jpeg_size"]
    assert first is not None and (second is None) == (expected == "null")
    assert cli("report", folder, "--out", tmp_path / "page.html").code == 0


# --- recipes --------------------------------------------------------------------------------------

BASE = """
model: {path: MODEL}
method: {name: prdp}
prompts: {train: emoji-train, eval: emoji-heldout}
rewards: {jpeg_size: 1.0}
"""
LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES: dict[str, bytes] = {
    "aliases without end": (LAUGHS + BASE).encode(),
    "an alias to itself": b"model: &a [*a]\n",
    "a tag that runs a command": b"model: !!python/object/apply:os.system ['touch sprung']\n",
    "a tag that makes an object": b"model: !!python/object/new:os.system ['touch sprung']\n",
    "a tag of our own making": b"!align_gen.training.recipe.Recipe {}\n",
    "a key twice": (BASE + "method: {name: ddpo}\n").encode(),
    "not a number for a rate": (BASE + "optim: {lr: .nan}\n").encode(),
    "infinity for a rate": (BASE + "optim: {lr: .inf}\n").encode(),
    "infinity for a reward's weight": BASE.replace("jpeg_size: 1.0", "jpeg_size: .inf").encode(),
    "a number beyond all": (BASE + "run: {steps: 1e400}\n").encode(),
    "an integer of 5,000 digits": (BASE + f"run: {{seed: {'9' * 5000}}}\n").encode(),
    "a negative size": (BASE + "sampling: {height: -64}\n").encode(),
    "zero bytes": b"",
    "NULs": bytes(2000),
    "a picture": picture(),
    "not UTF-8": b"model: \xff\xfe\n",
    "a list": b"- model\n",
    "a word": b"model\n",
    "two documents": (BASE + "---\n" + BASE).encode(),
    "brackets without end": b"[" * 10_000,
    "a mapping for a key": b"{{a: b}: c}\n",
    "unknown keys": (BASE + "model.path: x\n__init__: {}\n").encode(),
    "a list for a section": b"model: [1, 2]\nmethod: {name: prdp}\n",
    "a script for a path": BASE.replace("MODEL", '"<script>alert(1)</script>"').encode(),
    "a path that climbs": BASE.replace("MODEL", "../../../../etc").encode(),
    "a hub name that climbs": BASE.replace("MODEL", "../..").encode(),
    "prompts that are a device": BASE.replace("emoji-train", "/dev/null").encode(),
    "a method that is a path": BASE.replace("prdp", "os.system").encode(),
    "a reward that starts a program": BASE.replace(
        "jpeg_size: 1.0", "x: {name: 'subprocess:Popen', args: [touch, sprung]}"
    ).encode(),
    "a reward that is a function of Python's": BASE.replace(
        "jpeg_size: 1.0", "x: {name: 'subprocess:run', args: [touch, sprung]}"
    ).encode(),
    "a program inside of a wrapper": BASE.replace(
        "jpeg_size: 1.0", "views: {head: 'os:mkdir', path: sprung}"
    ).encode(),
    "a held-out reward that starts a program": (
        BASE + "eval_rewards: {x: {name: 'subprocess:Popen', args: [touch, sprung]}}\n"
    ).encode(),
    "layers by a regular expression without end": BASE.replace(
        "{path: MODEL}", "{path: MODEL, lora: {target_modules: '([a-z_.0-9]+)+!'}}"
    ).encode(),
    "a list of regular expressions": BASE.replace(
        "{path: MODEL}", "{path: MODEL, lora: {target_modules: ['([a-z_.0-9]+)+!', to_q]}}"
    ).encode(),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", RECIPES)
def test_a_hostile_recipe_is_one_line(
    cli: Callable[..., Done], tiny_folder: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(
        RECIPES[case].replace(b"MODEL", str(tiny_folder).encode())
    )
    done = cli("finetune", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert done.code == 2 and done.err.count("\n") == 1 and len(done.err) < 1000, done.err
    assert not (tmp_path / "run").exists()


# --- run directories ------------------------------------------------------------------------------


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder / MARK),))


def lying(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose header is as given."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


LONGER = lying(b"{}", length=2**62)


def unsummed(folder: Path) -> Path:
    """As the first checkpoints were: nothing says what should be in it."""
    for name in ("SHA256SUMS", "progress.json"):
        (folder / name).unlink()
    return folder


CHECKPOINTS: dict[str, Callable[[Path, Path], Any]] = {
    "an optimizer that runs code": lambda f, t: torch.save(Trap(t), unsummed(f) / "optimizer.pt"),
    "an optimizer that is a pickle": lambda f, t: (unsummed(f) / "optimizer.pt").write_bytes(
        pickle.dumps(Trap(t))
    ),
    "an empty optimizer": lambda f, t: (unsummed(f) / "optimizer.pt").write_bytes(b""),
    "weights that are a pickle": lambda f, t: (unsummed(f) / "weights.safetensors").write_bytes(
        pickle.dumps(Trap(t))
    ),
    "a header longer than the file": lambda f, t: (unsummed(f) / "weights.safetensors").write_bytes(
        LONGER
    ),
    "a header that is no JSON": lambda f, t: (unsummed(f) / "weights.safetensors").write_bytes(
        lying(b"{{{{")
    ),
    "offsets beyond the end": lambda f, t: (unsummed(f) / "weights.safetensors").write_bytes(
        lying(b'{"a":{"dtype":"F32","shape":[999999],"data_offsets":[0,3999996]}}', b"1234")
    ),
    "a shape that multiplies beyond all": lambda f, t: (
        unsummed(f) / "weights.safetensors"
    ).write_bytes(
        lying(
            b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', b"1234"
        )
    ),
    "sums of something else": lambda f, t: (f / "SHA256SUMS").write_text(
        f"{'0' * 64}  ../../neighbour/secret.png\n"
    ),
    "progress that is a list": lambda f, t: (f / "progress.json").write_text("[]"),
}


@pytest.fixture(scope="module")
def run_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, saved; to be copied."""
    from align_gen import finetune

    folder = tmp_path_factory.mktemp("hostile")
    (folder / "train.txt").write_text("a dog\na cat\n")
    (folder / "eval.txt").write_text("an elk\n")
    recipe = Recipe.parse(
        {
            "model": {"path": str(tiny_folder), "lora": {"rank": 2}},
            "method": {
                "name": "prdp",
                "images_per_prompt": 2,
                "prompts_per_step": 1,
                "gradient_steps": 1,
            },
            "prompts": {"train": str(folder / "train.txt"), "eval": str(folder / "eval.txt")},
            "rewards": {"mean_hue": {"hue": 120.0}},
            "sampling": {
                "num_inference_steps": 2,
                "guidance_scale": 1.0,
                "height": 16,
                "width": 16,
            },
            "evaluate": {"num_inference_steps": 2, "seeds": [0]},
            "run": {"steps": 1},
        }
    )
    finetune(recipe, folder / "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_hostile_checkpoint_is_not_loaded(
    cli: Callable[..., Done], run_folder: Path, tmp_path: Path, case: str
) -> None:
    """It is the only one, so the run says so and ends; nothing of it runs."""
    shutil.copytree(run_folder, tmp_path / "run")
    CHECKPOINTS[case](tmp_path / "run/checkpoints/step-000001", tmp_path)
    done = cli("finetune", tmp_path / "run/recipe.yaml", "--out", tmp_path / "run")
    assert (
        done.code == 2
        and "none of its checkpoints can be read" in done.err
        and "damaged (" in done.err
    )


@pytest.mark.slow
def test_a_journal_and_a_pointer_of_nonsense_do_no_harm(
    cli: Callable[..., Done], run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run/state.json").write_text('{"checkpoint": "../../neighbour", "format": 99}')
    (tmp_path / "run/metrics.jsonl").write_text('[]\n{"step": "<script>"}\n{"step": 1e999}\n')
    assert cli("finetune", tmp_path / "run/recipe.yaml", "--out", tmp_path / "run").code == 0


# --- pipelines and adapters -----------------------------------------------------------------------


def index(folder: Path, **rows: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | rows))


def pickled_only(folder: Path, trap: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(Trap(trap), folder / "unet/diffusion_pytorch_model.bin")


def own_code(folder: Path, trap: Path) -> None:
    """A pipeline of a file that lies beside, as diffusers' custom pipelines are."""
    (folder / "pipeline.py").write_text(
        f"import os\nos.mkdir({str(trap / MARK)!r})\nclass Mine: pass\n"
    )
    (folder / "unet" / "mine.py").write_text(
        f"import os\nos.mkdir({str(trap / MARK)!r})\nclass Mine: pass\n"
    )
    index(folder, unet=["mine", "Mine"])


def edited(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


PIPELINES: dict[str, Callable[[Path, Path], Any]] = {
    "a class of another module": lambda f, t: index(f, unet=["os", "system"]),
    "a class of a module of its own": own_code,
    "a class that is a path": lambda f, t: index(f, _class_name="../../evil"),
    "a class that is a builtin": lambda f, t: index(f, _class_name="eval"),
    "a class that is a list": lambda f, t: index(f, _class_name=["StableDiffusionPipeline"]),
    "an index that is a list": lambda f, t: (f / "model_index.json").write_text("[]"),
    "an index of nesting without end": lambda f, t: (f / "model_index.json").write_text(
        "[" * 100_000
    ),
    "a component that is a word": lambda f, t: index(f, unet="unet"),
    "weights that are a pickle with code": pickled_only,
    "weights whose header lies": lambda f, t: (
        f / "unet/diffusion_pytorch_model.safetensors"
    ).write_bytes(LONGER),
    "a configuration that is no JSON": lambda f, t: (f / "unet/config.json").write_text("{"),
    "a network of no layers": lambda f, t: (f / "unet/config.json").write_text(
        '{"block_out_channels": []}'
    ),
    "a tokenizer that is no JSON": lambda f, t: [
        (file).write_text("{") for file in (f / "tokenizer").glob("*.json")
    ],
    "a tokenizer of nesting without end": lambda f, t: (f / "tokenizer/tokenizer.json").write_text(
        "[" * 100_000
    ),
    "a tokenizer nested beyond its reader": lambda f, t: edited(
        f / "tokenizer/tokenizer.json", model=json.loads("[" * 200 + "]" * 200)
    ),
    "a text of 10^30 tokens": lambda f, t: edited(
        f / "tokenizer/tokenizer_config.json", model_max_length=10**30
    ),
    "a text of no tokens": lambda f, t: edited(
        f / "tokenizer/tokenizer_config.json", model_max_length=0
    ),
    "a text encoder of 10^6 layers": lambda f, t: edited(
        f / "text_encoder/config.json", num_hidden_layers=10**6
    ),
    "a network of 10^6 layers": lambda f, t: edited(f / "unet/config.json", layers_per_block=10**6),
    "a VAE of 10^6 layers": lambda f, t: edited(f / "vae/config.json", layers_per_block=10**6),
    "a schedule of no steps": lambda f, t: edited(
        f / "scheduler/scheduler_config.json", num_train_timesteps=0
    ),
    "a schedule of 10^11 steps": lambda f, t: edited(
        f / "scheduler/scheduler_config.json", num_train_timesteps=10**11
    ),
    "a schedule of five betas": lambda f, t: edited(
        f / "scheduler/scheduler_config.json", trained_betas=[0.1] * 5
    ),
    "latents without scale": lambda f, t: edited(f / "vae/config.json", scaling_factor=0),
    "a class that is a list in a list": lambda f, t: index(f, _class_name=[["x"]]),
    "a component's class that is a list in a list": lambda f, t: edited(
        f / "unet/config.json", _class_name=[["x"]]
    ),
    "a component that is a function": lambda f, t: index(f, unet=["transformers", "pipeline"]),
    "a component that is a tokenizer": lambda f, t: index(
        f, unet=["transformers", "CLIPTokenizer"]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PIPELINES)
def test_a_hostile_pipeline_is_one_line(
    cli: Callable[..., Done], tiny_folder: Path, tmp_path: Path, case: str
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    PIPELINES[case](tmp_path / "model", tmp_path)
    done = cli(
        "sample",
        tmp_path / "model",
        "--prompt",
        "a dog",
        "--size",
        "16x16",
        "--steps",
        2,
        "--out",
        tmp_path / "out",
    )
    assert done.code in (1, 2) and done.err.splitlines()[-1].startswith("align-gen: "), done.err
    assert not (tmp_path / "out").exists()


LORA = "pytorch_lora_weights.safetensors"
TENSOR = b'"x.lora_A.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
EVIL = "([a-z_.0-9]+)+!"  # takes for ever on a name without an exclamation mark


def settings_of(**settings: Any) -> bytes:
    """A LoRA of one module of the UNet, which says this of itself."""
    told = json.dumps({f"unet.{key}": value for key, value in {"r": 1, **settings}.items()})
    about = json.dumps({"lora_adapter_metadata": told}).encode()
    places = ((b"A", b"0,4"), (b"B", b"4,8"))
    rows = b",".join(
        b'"unet.mid_block.resnets.0.time_emb_proj.lora_%s.weight":' % side
        + b'{"dtype":"F32","shape":[1,1],"data_offsets":[%s]}' % place
        for side, place in places
    )
    return lying(b'{"__metadata__":' + about + b"," + rows + b"}", bytes(8))


ADAPTERS: dict[str, Callable[[Path, Path], Any]] = {
    "a pickle with code": lambda f, t: torch.save(Trap(t), f / "pytorch_lora_weights.bin"),
    "a pickle under the right name": lambda f, t: (f / LORA).write_bytes(pickle.dumps(Trap(t))),
    "a header that lies": lambda f, t: (f / LORA).write_bytes(LONGER),
    "nothing in it": lambda f, t: (f / LORA).write_bytes(lying(b"{}")),
    "foreign names": lambda f, t: (f / LORA).write_bytes(
        lying(b"{" + TENSOR + b"}", b"1234")
    ),
    "metadata of nonsense": lambda f, t: (f / LORA).write_bytes(
        lying(b'{"__metadata__":{"lora_adapter_metadata":"[[["},' + TENSOR + b"}", b"1234")
    ),
    "metadata of nesting without end": lambda f, t: (f / LORA).write_bytes(
        lying(
            b'{"__metadata__":{"lora_adapter_metadata":"' + b"[" * 100_000 + b'"},' + TENSOR + b"}",
            b"1234",
        )
    ),
    "layers by a regular expression without end": lambda f, t: (f / LORA).write_bytes(
        settings_of(target_modules=EVIL)
    ),
    "ranks by a regular expression without end": lambda f, t: (f / LORA).write_bytes(
        settings_of(target_modules=["time_emb_proj"], rank_pattern={EVIL: 2})
    ),
    "a tensor named as a regular expression": lambda f, t: (f / LORA).write_bytes(
        lying(b"{" + TENSOR.replace(b"x.lora", b"unet.([a-z_.0-9]+)+!.lora") + b"}", b"1234")
    ),
    "a module to be imported": lambda f, t: (f / LORA).write_bytes(
        settings_of(target_modules=["x"], megatron_config={}, megatron_core="antigravity")
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", ADAPTERS)
def test_a_hostile_adapter_is_one_line(
    cli: Callable[..., Done], tiny_folder: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "adapter").mkdir()
    ADAPTERS[case](tmp_path / "adapter", tmp_path)
    asked = (
        "sample",
        tiny_folder,
        "--prompt",
        "a dog",
        "--size",
        "16x16",
        "--steps",
        2,
        "--out",
        tmp_path / "out",
    )
    done = cli(*asked, "--adapter", tmp_path / "adapter")
    assert done.code == 2 and done.err.splitlines()[-1].startswith("align-gen: "), done.err
    assert not (tmp_path / "out").exists()


# --- at random ------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "model",
        "method",
        "prompts",
        "rewards",
        "sampling",
        "evaluate",
        "optim",
        "run",
        "stop",
        "name",
    ]
)


def only_user_errors(work: Callable[[], Any]) -> None:
    """It succeeds, or says in one line what is wrong."""
    try:
        work()
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error


@pytest.mark.slow
@FUZZ
@given(
    content=st.binary(max_size=300)
    | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_as_a_recipe(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(content)
    only_user_errors(lambda: Recipe.load(file))


@pytest.mark.slow
@FUZZ
@given(data=st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3), max_size=6))
def test_any_values_as_a_recipe(data: dict[str, Any]) -> None:
    only_user_errors(lambda: Recipe.parse(data))


@pytest.mark.slow
@FUZZ
@given(
    lines=st.lists(
        st.binary(max_size=80)
        | st.dictionaries(
            st.sampled_from(["file_name", "prompt", "seed", "x"]), VALUES, max_size=4
        ).map(lambda row: json.dumps(row).encode()),
        max_size=4,
    )
)
def test_any_lines_as_metadata_and_prompts(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    for name in ("metadata.jsonl", "prompts.jsonl"):
        (folder / name).write_bytes(b"\n".join(lines))
    only_user_errors(lambda: Gallery.load(folder))
    only_user_errors(lambda: load_prompts(folder / "prompts.jsonl"))
