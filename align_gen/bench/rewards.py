"""Measure scoring beside hpsv2 1.2.0, the published scorer, and beside the floor of its cost.

`scripts/get_hpsv2.py` puts hpsv2 beside the environment.
"""

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from ..errors import UserError
from ..galleries.gallery import Gallery
from ..galleries.media import read_picture
from ..galleries.scoring import score
from ..reward_heads import RewardSet
from ..reward_heads.heads.hps import HpsHead
from .timing import Row, in_turns, row

ARCHITECTURE = "ViT-B-32"
SIDE = 512
BATCHES = (8, 16, 32, 64)
ALONE = 16  # pictures of a round that hpsv2 is called for one by one
OURS = "score"
ONE = "hpsv2, one by one"
KEPT = "hpsv2, one by one, kept loaded"
LIST = "hpsv2, a list"
BARS = {ONE: 5.0, LIST: 2.2, "floor": 0.95}  # images a second: ours ÷ its


def bench_rewards(device: torch.device, *, rounds: int = 7, pictures: int = 64) -> list[Row]:
    """Time 512 x 512 JPEGs of one prompt, scored by a random ViT-B-32: by us and by hpsv2.

    All have the same weights, and building models is not timed. hpsv2 reads its checkpoint at every
    call; one more row shows it without that. Our prompt is new in every round, so that it is
    encoded in each. The floor: encode the pictures at the best batch size + read their files ÷
    cores.

    Raises:
        UserError: hpsv2 is not there.
    """
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        checkpoint = write_checkpoint(Path(name) / "random.pt")
        gallery = write_jpegs(Path(name) / "gallery", pictures)
        head = HpsHead(str(checkpoint), architecture=ARCHITECTURE).to(device)
        rewards = RewardSet({"hps": head}).to(device)
        rival = hpsv2(device)
        paths = [str(gallery.path(index)) for index in range(pictures)]
        # A new text each round, or the cache of texts would answer for us.
        prompts = (f"a picture of round {n}" for n in itertools.count())

        def ours() -> None:
            prompt = next(prompts)
            score(
                Gallery(gallery.folder, [{**row, "prompt": prompt} for row in gallery.rows]),
                rewards,
            )

        works = {
            OURS: ours,
            ONE: lambda: [
                rival.score(path, "a picture", cp=str(checkpoint)) for path in paths[:ALONE]
            ],
            KEPT: lambda: kept_loaded(
                rival,
                lambda: [
                    rival.score(path, "a picture", cp=str(checkpoint)) for path in paths[:ALONE]
                ],
            ),
            LIST: lambda: rival.score(paths, "a picture", cp=str(checkpoint)),
            "encode": encode_best(head, gallery, device),
            "read": lambda: _read(gallery),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Once untimed: kernels are chosen and caches filled at the first call.
            works[OURS](), works["encode"]()
            rival.score(paths[:1], "a picture", cp=str(checkpoint))
            seconds = in_turns(works, rounds, device)

    # Files are read on all cores while the device encodes, so their time counts by the core.
    cores = os.cpu_count() or 1
    floors = [
        encoded + read / cores
        for encoded, read in zip(seconds["encode"], seconds["read"], strict=True)
    ]
    return [
        row(OURS, ARCHITECTURE, pictures, seconds[OURS], floors),
        row(ONE, ARCHITECTURE, min(ALONE, pictures), seconds[ONE]),
        row(KEPT, ARCHITECTURE, min(ALONE, pictures), seconds[KEPT]),
        row(LIST, ARCHITECTURE, pictures, seconds[LIST]),
    ]


def speedups(rows: Sequence[Row]) -> dict[str, float]:
    """Our images a second ÷ those of each row in ``BARS``; for the floor, the share we reach."""
    by_name = {row.name: row for row in rows}
    ours = by_name[OURS]
    assert ours.ratio is not None
    found = {name: ours.images_per_second / by_name[name].images_per_second for name in (ONE, LIST)}
    return {**found, "floor": 1 / ours.ratio}


def kept_loaded(rival: Any, work: Callable[[], Any]) -> Any:
    """Do the work without reading the checkpoint, whose weights the model has already."""
    model = rival.model_dict["model"]
    read = rival.torch
    rival.torch = SimpleNamespace(**{**vars(torch), "load": lambda *_, **__: {"state_dict": None}})
    model.load_state_dict = lambda _: None
    try:
        return work()
    finally:
        rival.torch = read
        del model.load_state_dict


def hpsv2(device: torch.device) -> Any:
    """The module of hpsv2's ``score``, made to score with the bench's architecture.

    hpsv2 takes its model from a table in that module.

    Raises:
        UserError: it is not there.
    """
    try:
        import hpsv2.img_score as rival
        from hpsv2.src.open_clip import create_model_and_transforms
    except (ImportError, FileNotFoundError) as error:
        raise UserError(
            f"bench rewards: hpsv2 cannot be imported here ({error}); "
            "python scripts/get_hpsv2.py, then PYTHONPATH=build/hpsv2 align-gen bench rewards"
        ) from error
    options = {
        "precision": "amp",
        "device": str(device),
        "light_augmentation": True,
        "output_dict": True,
    }
    model, _, preprocess = create_model_and_transforms(ARCHITECTURE, None, **options)
    rival.model_dict.update(model=model, preprocess_val=preprocess)
    # else it makes a folder in the user's home
    rival.device = str(device)
    rival.root_path = os.curdir
    return rival


def write_checkpoint(file: Path) -> Path:
    """Random weights, as the published checkpoints hold theirs."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE))
    torch.save({"state_dict": model.state_dict()}, file)
    return file


def write_jpegs(folder: Path, count: int) -> Gallery:
    """Blurred noise at the quality that cameras use, so that reading a file takes what it takes."""
    folder.mkdir()
    noise = torch.rand(count, 3, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))
    pixels = (
        torch.nn.functional.interpolate(noise, (SIDE, SIDE), mode="bicubic")
        .clamp(0, 1)
        .mul(255)
        .byte()
    )
    rows = [{"file_name": f"{number:05d}.jpg"} for number in range(count)]
    for picture, line in zip(pixels.permute(0, 2, 3, 1).numpy(), rows, strict=True):
        Image.fromarray(picture).save(folder / line["file_name"], quality=92)
    return Gallery(folder, [dict(line) for line in rows])


def encode_best(head: HpsHead, gallery: Gallery, device: torch.device) -> Callable[[], Any]:
    """Score the pictures from memory, at the batch size that is fastest here."""
    media = torch.stack([gallery.image(index) for index in range(len(gallery))]).to(device)

    def encode(size: int) -> Callable[[], Any]:
        return lambda: [head(part, ["a picture"] * len(part)) for part in media.split(size)]

    works = {size: encode(size) for size in BATCHES}
    tried = in_turns({str(size): work for size, work in works.items()}, 2, device)
    return works[min(BATCHES, key=lambda size: min(tried[str(size)]))]


def _read(gallery: Gallery) -> None:
    for index in range(len(gallery)):
        read_picture(gallery.path(index))
