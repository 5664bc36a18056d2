"""The training set of a run, in units: a prompt, a preference pair, or a group of pictures."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import rank_slice
from ..errors import RunFailure, UserError
from ..galleries.formats import FORMATS, VIDEOS, UnreadablePicture
from ..galleries.items import Item
from ..galleries.media import as_media, read_pixels
from ..galleries.pairs import SIDES, read_pairs
from ..galleries.prompts import load_prompts
from ..galleries.sources import open_source
from ..methods.batches import Batch, Media, Pairs, Prompts, Sampling, encode
from ..methods.state import TrainState
from ..pipelines.seeding import generator
from .recipe import Recipe

if TYPE_CHECKING:
    from ..pipelines import Model

log = logging.getLogger("align_gen")


class Data(Protocol):
    """The training set in units.

    ``prompts`` lists all training prompts, so that held-out ones can be checked against them.
    """

    prompts: list[str]
    skipped: dict[str, int]  # why -> how many could not become units

    def __len__(self) -> int: ...

    def batch(
        self, units: Sequence[int], ids: Sequence[int], model: "Model", sampling: Sampling
    ) -> Batch:
        """These units; ``ids`` are their places in the run's stream, which seed the noise."""


@dataclass
class PromptData:
    """A unit is a prompt."""

    prompts: list[str]
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(
        self, units: Sequence[int], ids: Sequence[int], model: "Model", sampling: Sampling
    ) -> Prompts:
        texts = [self.prompts[unit] for unit in units]
        return Prompts(texts, encode(model, texts, sampling), list(ids))


@dataclass
class PairData:
    """Units of one preference pair each, as ``pairs.read_pairs`` has them, the better side first.

    Left out, and counted: ties (``label`` 0), labels that say nothing, pairs of one and the same
    file, and files that are missing or no pictures.

    Attributes:
        content: SHA-256 of all that is learned from, prompts and pictures, in order.
    """

    rows: list[dict[str, Any]]
    prompts: list[str]
    skipped: dict[str, int]
    content: str

    @classmethod
    def load(cls, source: str) -> "PairData":
        """Raises UserError where nothing is left."""
        rows = []
        content = hashlib.sha256()
        skipped = dict.fromkeys(("ties", "unlabelled", "the same picture twice", "unreadable"), 0)
        for row in read_pairs(source):
            label = row.get("label", 1)
            if label == 0:
                skipped["ties"] += 1
            elif label not in (1, -1):
                skipped["unlabelled"] += 1
            elif any(_fault(row[side].path or row[side].data, row[side].name) for side in SIDES):
                skipped["unreadable"] += 1
            else:
                better, worse = SIDES if label == 1 else SIDES[::-1]
                sums = [_digest(row[side].path or row[side].data) for side in (better, worse)]
                # The same bytes on both sides teach nothing, whatever the label says.
                if sums[0] == sums[1]:
                    skipped["the same picture twice"] += 1
                    continue
                content.update(f"{sums} {row['prompt']}\n".encode())
                rows.append({**row, "chosen": row[better], "rejected": row[worse]})
        skipped = {reason: count for reason, count in skipped.items() if count}
        if not rows:
            raise UserError(
                f"data.pairs: {source}: no pair to learn from ({skipped}); "
                "want two pictures that differ"
            )
        return cls(rows, [row["prompt"] for row in rows], skipped, content.hexdigest())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, units: Sequence[int], ids: Sequence[int], model: "Model", sampling: Sampling
    ) -> Pairs:
        rows = [self.rows[unit] for unit in units]
        sides = []
        for side in SIDES:
            media = [_read(row[side].path or row[side].data, row[side].name) for row in rows]
            sides.append(torch.stack([fitted(each, model, sampling) for each in media]))
        texts = [row["prompt"] for row in rows]
        return Pairs(texts, encode(model, texts, sampling), list(ids), *sides)


@dataclass
class MediaData:
    """A unit is ``group`` pictures or videos of one prompt, of anything that ``open_source`` opens.

    A prompt with more of them makes several units. Left out, and counted: what is left over, has no
    prompt, or cannot be read.
    """

    units: list[list[Item]]
    prompts: list[str]
    skipped: dict[str, int]

    @classmethod
    def load(cls, source: str, group: int) -> "MediaData":
        """Raises UserError where nothing is left."""
        groups: dict[str, list[Item]] = {}
        skipped = dict.fromkeys(("without a prompt", "unreadable", "too few of their prompt"), 0)
        for item in open_source(source):
            prompt = item.row.get("prompt")
            if not isinstance(prompt, str) or not prompt.strip():
                skipped["without a prompt"] += 1
            elif isinstance(item.content, UnreadablePicture) or (
                isinstance(item.content, Path | bytes)
                and _fault(item.content, str(item.row["file_name"]))
            ):
                skipped["unreadable"] += 1
            else:
                groups.setdefault(prompt, []).append(item)
        units: list[list[Item]] = []
        for items in groups.values():
            # Units are whole groups: methods reshape a batch to (prompts, group).
            whole = len(items) // group * group
            units += [items[start : start + group] for start in range(0, whole, group)]
            skipped["too few of their prompt"] += len(items) - whole
        skipped = {reason: count for reason, count in skipped.items() if count}
        if not units:
            raise UserError(
                f"data.media: {source}: nothing to learn from ({skipped}); "
                f"want {group} of each prompt"
            )
        return cls(units, [str(unit[0].row["prompt"]) for unit in units], skipped)

    def __len__(self) -> int:
        return len(self.units)

    def batch(
        self, units: Sequence[int], ids: Sequence[int], model: "Model", sampling: Sampling
    ) -> Media:
        items = [item for unit in units for item in self.units[unit]]
        media = torch.stack(
            [
                fitted(_read(item.read(), str(item.row["file_name"])), model, sampling)
                for item in items
            ]
        )
        texts = [str(item.row["prompt"]) for item in items]
        group = len(items) // max(len(units), 1)
        # Units are numbered in the run's stream of units, and pictures in that of pictures.
        numbers = [unit * group + sibling for unit in ids for sibling in range(group)]
        return Media(texts, encode(model, texts, sampling), numbers, media)


def fitted(media: Tensor, model: "Model", sampling: Sampling) -> Tensor:
    """A picture (3,H,W) or video (F,3,H,W) at the run's size: shorter side resized, centre cropped.

    Of a video, frames spread evenly over it.
    """
    height = sampling.height or model.default_size[0]
    width = sampling.width or model.default_size[1]
    frames = media if media.ndim == 4 else media[None]
    wanted = (sampling.num_frames or model.default_frames) if media.ndim == 4 else 1
    if len(frames) != wanted:
        frames = frames[torch.linspace(0, len(frames) - 1, wanted).round().long()]
    if frames.shape[-2:] != (height, width):
        scale = max(height / frames.shape[-2], width / frames.shape[-1])
        size = (
            max(height, round(frames.shape[-2] * scale)),
            max(width, round(frames.shape[-1] * scale)),
        )
        frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
        top = (size[0] - height) // 2
        left = (size[1] - width) // 2
        frames = frames[..., top : top + height, left : left + width]
    return frames if media.ndim == 4 else frames[0]


def _read(content: Path | bytes | None, name: str) -> Tensor:
    """Decoded; what looked whole at the start and cannot be read now is a RunFailure."""
    try:
        return as_media(read_pixels(content or b"", Path(name).suffix.lower()))
    except UnreadablePicture as error:
        raise RunFailure(
            f"{name}: {error}; take it out of the data, and the same command goes on"
        ) from error


def _fault(content: Path | bytes | None, name: str) -> bool:
    """Whether a look at its first bytes says that this is no picture: nothing is decoded."""
    from PIL import Image

    try:
        if content is None or (isinstance(content, Path) and not content.is_file()):
            return True
        if Path(name).suffix.lower() in VIDEOS:
            return (content.stat().st_size if isinstance(content, Path) else len(content)) == 0
        with Image.open(
            BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS
        ):
            return False
    except Exception:  # broken files make decoders raise anything
        return True


def _digest(content: Path | bytes | None) -> str:
    return hashlib.sha256(
        content.read_bytes() if isinstance(content, Path) else content or b""
    ).hexdigest()


def load_data(recipe: Recipe) -> Data:
    """Load what the recipe's method learns from; logs what had to be left out."""
    kind = recipe.method.batch_kind()
    data: Data
    if kind == "pairs":
        data = PairData.load(str(recipe.data.pairs))
    elif kind == "media":
        data = MediaData.load(str(recipe.data.media), recipe.method.images_per_prompt)
    else:
        rows = load_prompts(str(recipe.prompts.train))
        data = PromptData([row["prompt"] for row in rows])
    if data.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in data.skipped.items())
        log.warning("left out of the data: %s", reasons)
    return data


def draw_batch(data: Data, recipe: Recipe, state: TrainState) -> Batch:
    """This process's share of the step's units.

    Epochs are permutations of the units, a function of (seed, step) alone.
    """
    count = recipe.method.prompts_per_step
    first = state.step * count
    numbers = [first + number for number in rank_slice(count, state.accelerator)]
    units = []
    for number in numbers:
        epoch, position = divmod(number, len(data))
        units.append(shuffled(len(data), recipe.run.seed, epoch)[position])
    return data.batch(units, numbers, state.model, recipe.sampling)


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's units."""
    order: list[int] = torch.randperm(count, generator=generator(seed, "prompts", epoch)).tolist()
    return order
