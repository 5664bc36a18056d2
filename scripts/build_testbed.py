"""Turn published emoji packages into the arrays that the small models are trained on.

    python scripts/build_testbed.py --out build/testbed

Downloads nine npm packages with ``npm pack``, composites every picture on white at 64x64, and
writes

    pictures.npy    uint8 (N, 64, 64, 3)        RGB
    masks.npy       uint8 (N, 64, 64)           alpha, a free segmentation mask
    pictures.jsonl  one row a picture: thing, tags, group, style, hexcode
    videos.npy      uint8 (M, 24, 64, 64, 3)    evenly spaced frames of animations that loop
    videos.jsonl    one row a video, likewise

Nothing of it is committed. Licences: see THIRD_PARTY_NOTICES.md.
"""

import argparse
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PACKAGES = {
    "@lobehub/fluent-emoji-3d@1.1.0": "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "@lobehub/fluent-emoji-flat@1.1.0": "lobehub-fluent-emoji-flat-1.1.0.tgz",
    "emoji-datasource-google@16.0.0": "emoji-datasource-google-16.0.0.tgz",
    "emoji-datasource-twitter@16.0.0": "emoji-datasource-twitter-16.0.0.tgz",
    "emojibase-data@17.0.0": "emojibase-data-17.0.0.tgz",
    **{
        f"@lobehub/fluent-emoji-anim-{n}@1.0.0": f"lobehub-fluent-emoji-anim-{n}-1.0.0.tgz"
        for n in range(1, 5)
    },
}
ANIMATED = [archive for archive in PACKAGES.values() if "anim" in archive]
FRAMES = 24
STYLES = {  # style -> (archive, folder inside it)
    "3d": ("lobehub-fluent-emoji-3d-1.1.0.tgz", "package/assets/"),
    "flat": ("lobehub-fluent-emoji-flat-1.1.0.tgz", "package/assets/"),
    "noto": ("emoji-datasource-google-16.0.0.tgz", "package/img/google/64/"),
    "twemoji": (
        "emoji-datasource-twitter-16.0.0.tgz",
        "package/img/twitter/64/",
    ),  # evaluation only
}
GROUPS = {
    0: "smileys",
    3: "animals-nature",
    4: "food-drink",
}  # a narrow domain: small models learn it well
SIZE = 64


def fetch(folder: Path) -> None:
    """``npm pack`` what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, archive in PACKAGES.items():
        if not (folder / archive).exists():
            print(f"npm pack {package}", flush=True)
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)


def read_folder(archive: Path, prefix: str) -> dict[str, bytes]:
    """File stem -> bytes for the files directly under ``prefix`` of a .tgz."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            if member.isfile() and member.name.startswith(prefix) and "/" not in name:
                stream = tar.extractfile(member)
                assert stream is not None
                found[name.rsplit(".", 1)[0]] = stream.read()
    return found


def things(archive: Path) -> Iterator[dict[str, Any]]:
    """The emoji of GROUPS, in the order of the Unicode charts."""
    with tarfile.open(archive) as tar:
        stream = tar.extractfile("package/en/data.json")
        assert stream is not None
        rows = json.load(stream)
    yield from sorted(
        (row for row in rows if row.get("group") in GROUPS), key=lambda row: row["order"]
    )


def described(thing: dict[str, Any]) -> dict[str, Any]:
    label = thing["label"].lower()
    tags = [tag.lower() for tag in thing.get("tags", []) if tag.lower() not in label.split()]
    return {"thing": label, "tags": tags, "group": GROUPS[thing["group"]]}


def lookup(files: dict[str, bytes], hexcode: str) -> bytes | None:
    """Packages disagree on whether a name carries the emoji presentation selector."""
    code = hexcode.lower()
    for name in (code, code.replace("-fe0f", ""), code + "-fe0f"):
        if name in files:
            return files[name]
    return None


def rgba(data: bytes) -> Image.Image:
    if data.lstrip()[:4] in (b"<svg", b"<?xm"):
        import resvg_py

        data = bytes(
            resvg_py.svg_to_bytes(svg_string=data.decode(), width=4 * SIZE, height=4 * SIZE)
        )
    return shrunk(Image.open(io.BytesIO(data)))


def shrunk(picture: Image.Image) -> Image.Image:
    premultiplied = picture.convert("RGBA").convert("RGBa")  # edges keep their colour when shrunk
    return premultiplied.resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")


def frames(data: bytes) -> np.ndarray | None:
    """(24, 64, 64, 3) of an animated WebP, or nothing of one that stands still."""
    moving: Any = Image.open(io.BytesIO(data))
    count = getattr(moving, "n_frames", 1)
    if count < FRAMES:
        return None
    found = []
    for index in range(FRAMES):
        moving.seek(index * count // FRAMES)
        found.append(on_white(shrunk(moving)))
    return np.stack(found)


def on_white(picture: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/testbed"))
    parser.add_argument(
        "--npm", type=Path, help="folder of the downloaded archives (default OUT/npm)"
    )
    args = parser.parse_args()
    archives: Path = args.npm or args.out / "npm"
    args.out.mkdir(parents=True, exist_ok=True)
    fetch(archives)

    # Every style of a thing that its package draws.
    files = {
        style: read_folder(archives / archive, prefix)
        for style, (archive, prefix) in STYLES.items()
    }
    pictures, masks, rows = [], [], []
    for thing in things(archives / "emojibase-data-17.0.0.tgz"):
        for style, available in files.items():
            data = lookup(available, thing["hexcode"])
            if data is None:
                continue
            picture = rgba(data)
            pictures.append(on_white(picture))
            masks.append(np.asarray(picture)[..., 3])
            rows.append({**described(thing), "style": style, "hexcode": thing["hexcode"]})

    np.save(args.out / "pictures.npy", np.stack(pictures))
    np.save(args.out / "masks.npy", np.stack(masks))
    (args.out / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    # Animations exist in one style, and not of every thing.
    moving: dict[str, bytes] = {}
    for archive in ANIMATED:
        moving |= read_folder(archives / archive, "package/assets/")
    videos, video_rows = [], []
    for thing in things(archives / "emojibase-data-17.0.0.tgz"):
        found = lookup(moving, thing["hexcode"])
        video = None if found is None else frames(found)
        if video is not None:
            videos.append(video)
            video_rows.append({**described(thing), "style": "3d", "hexcode": thing["hexcode"]})
    np.save(args.out / "videos.npy", np.stack(videos))
    (args.out / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in video_rows))
    counts = {style: sum(row["style"] == style for row in rows) for style in STYLES}
    different = len({row["thing"] for row in rows})
    print(f"{len(rows)} pictures of {different} things: {counts}; {len(videos)} videos")


if __name__ == "__main__":
    main()
