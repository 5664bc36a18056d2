"""Reward heads from preference pairs: a LoRA-tuned CLIP, as HPS is one, or a small head on frozen
features.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import bundled
from ..errors import UserError, user_mistakes, writing
from ..files import whole_folder
from ..galleries.media import VIDEOS, UnreadablePicture
from ..galleries.pairs import SIDES, MediaFile, read_pairs
from ..losses import bradley_terry, bradley_terry_ties, centring
from ..losses.preference import FIRST, SECOND, TIE
from ..pipelines.seeding import generator, seed_of
from ..progress import ProgressCallback
from ..reward_heads.backbones.head_folder import save_head
from ..reward_heads.backbones.open_clip_model import OpenClip
from ..reward_heads.backbones.preprocess import fit_square
from ..reward_heads.backbones.scorer import Scorer
from ..reward_heads.heads.trained import ImageScorer
from ..reward_heads.heads.video_reward import VideoScorer

Row = Mapping[str, Any]
MEASURED = "measured.json"
CONFIG = "open_clip_config.json"
LEARNING_RATES = {"lora": 1e-3, "frozen": 3e-3}
READERS = 4  # threads that decode pictures


def train_reward(
    pairs: str | Path | Sequence[Row],
    base: str,
    out: str | Path,
    *,
    mode: Literal["lora", "frozen"] = "lora",
    dimensions: Sequence[str] = ("overall",),
    loss: Literal["bt", "btt"] = "bt",
    theta: float = 5.0,
    label_smoothing: float | Literal["votes"] = 0.0,
    margin: str | None = None,
    centre: float = 0.0,
    rank: int = 8,
    hidden: int = 0,
    epochs: int = 4,
    batch_size: int = 32,
    lr: float | None = None,
    weight_decay: float = 0.01,
    held_out: float = 0.2,
    pretrained: str | None = None,
    resize: Literal["squash", "shortest"] = "squash",
    dtype: Literal["float32", "float16"] = "float32",
    seed: int = 0,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Learn to prefer what was chosen; write the head and what it measures on held-out prompts.

    A pair is a row with "prompt", "chosen" and "rejected" (as of ``read_pairs``, or tensors in [0,
    1]). What is the better one of dimension D stands in "label/D", else in "label": 1 the chosen,
    -1 the rejected, 0 a tie, anything else nobody knows; without either it is the chosen.

    Args:
        pairs: rows, or where ``read_pairs`` finds them.
        base: an open_clip folder, a bundled model, an architecture with ``pretrained``; when
            frozen, a hub name too.
        out: a new or empty folder. "lora": an open_clip folder as any other. "frozen":
            head.safetensors and head.json, for the rewards ``trained`` and, of videos,
            ``video_reward``.
        mode: "lora": the score is the cosine of picture and prompt; low-rank changes of every
            weight matrix of both towers learn, and are merged. "frozen": features are computed
            once, a tower a dimension learns on them.
        dimensions: names; one for "lora". Of videos: visual_quality, motion_quality,
            text_alignment.
        loss: "bt" learns from pairs with a better one, "btt" from ties too, ``theta`` as of
            ``bradley_terry_ties``.
        label_smoothing: the chance that a label is wrong, or "votes": 1 - the row's "votes" for its
            better one.
        margin: the column with the lead that the better one should have, in units of the score's
            difference.
        centre: weight of ``centring``.
        rank: of the low-rank changes.
        hidden: width of a tower's hidden layer; 0: none.
        epochs, batch_size, lr, weight_decay: of AdamW, with warm-up and cosine decay; lr by the
        mode if None.
        held_out: share of the prompts that are measured and never learned from; z-normalisation is
            over them too.
        resize: how pictures come to the model's size, as of the reward ``clip``.
        dtype: of the written weights of "lora"; measured as written.
        seed: of split, order and initial weights. The same arguments give the same numbers on the
            same machine.
        device: where to compute.
        progress: told ``(phase, done, total, numbers)``.

    Returns:
        What measured.json holds: counts, options, and for each dimension, before ("base", the
        base's cosine) and after, accuracy without and with ties and the calibration error.

    Raises:
        UserError: an option that is none, pairs that cannot be read or split, an ``out`` that holds
            something.
    """
    began = time.monotonic()
    rows = list(read_pairs(pairs) if isinstance(pairs, str | Path) else pairs)
    kind = _kind(rows)
    options: dict[str, Any] = {
        "mode": mode,
        "loss": loss,
        "theta": theta,
        "label_smoothing": label_smoothing,
    }
    options |= {
        "margin": margin,
        "centre": centre,
        "rank": rank,
        "hidden": hidden,
        "epochs": epochs,
    }
    options |= {
        "batch_size": batch_size,
        "lr": LEARNING_RATES.get(mode) if lr is None else lr,
        "seed": seed,
    }
    options |= {
        "weight_decay": weight_decay,
        "held_out": held_out,
        "resize": resize,
        "dtype": dtype,
    }
    _check(options, dimensions, kind)
    place = _new_folder(Path(out))
    targets = _targets(rows, dimensions, label_smoothing, margin)
    learn, hold = _split(rows, held_out, seed)
    with user_mistakes():
        source = bundled.model_path(base)
        loaded = OpenClip.load(source, pretrained)
        clip = OpenClip(copy.deepcopy(loaded.model), loaded.tokenizer).to(
            device
        )  # others may hold the loaded one
        if mode == "lora":
            if pretrained is None and not (Path(source) / CONFIG).is_file():
                raise UserError(
                    f"base {base}: lora wants an open_clip folder, or an architecture with pretrained"
                )
            student: Student = TunedClip(clip, rows, resize, rank, seed)
        else:
            scorer_type: type[Scorer] = VideoScorer if kind == "video" else ImageScorer
            student = FrozenHead(
                clip, rows, resize, scorer_type, dimensions, hidden, seed, progress
            )

    before = student.cosines(hold)
    _fit(student, learn, targets, options, progress)
    if isinstance(student, TunedClip):
        student.merge(dtype)
    with torch.no_grad():
        after = torch.cat([student.scores(part) for part in hold.split(batch_size)])  # (P, 2, K)
    labels = targets.labels[hold]
    measured = {
        "pairs": len(learn),
        "held-out pairs": len(hold),
        "held-out prompts": len({rows[i]["prompt"] for i in hold.tolist()}),
        "base": {name: measure(before, labels[:, k]) for k, name in enumerate(dimensions)},
        "trained": {
            name: measure(after[:, 0, k] - after[:, 1, k], labels[:, k])
            for k, name in enumerate(dimensions)
        },
        "options": options,
        "seconds": round(time.monotonic() - began, 1),
    }
    with writing(place), whole_folder(place) as folder:
        if isinstance(student, FrozenHead):
            about = _normalisation(after) | {
                "base": base if source != base else _relative(base, place)
            }
            about |= {
                "pretrained": pretrained,
                "base_sha256": loaded.sha256,
                "resize": resize,
                "loss": loss,
            }
            save_head(folder, student.scorer.cpu(), about)
        else:
            _save_clip(folder, source, pretrained, clip, dtype)
        (folder / MEASURED).write_text(json.dumps(measured, indent=1) + "\n")
    return measured


# --- who learns -----------------------------------------------------------------------------------


class Student(Protocol):
    """Scores the pairs it was made of, by their numbers."""

    def scores(self, index: Tensor) -> Tensor:
        """(P,) -> (P, 2, K): chosen and rejected, every dimension."""

    def cosines(self, index: Tensor) -> Tensor:
        """(P,) -> (P,): how far the base prefers the chosen, in its own logits."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class LowRank(nn.Module):
    """W -> W + up down, of the same shape; nothing at the start (Hu et al., arXiv 2106.09685),
    alpha = rank.
    """

    def __init__(self, weight: Tensor, rank: int, g: torch.Generator):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.down = nn.Parameter(
            (torch.randn(rank, columns, generator=g) / math.sqrt(columns)).to(weight.device)
        )
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(model: nn.Module, rank: int, seed: int) -> list[LowRank]:
    """Low-rank changes of every weight matrix and convolution of a frozen model, embeddings left
    out.

    As parametrisations, not as layers: CLIP hands the matrices themselves to functions of
    attention, which would pass by a wrapped layer.
    """
    found = [
        (module, name, f"{path}.{name}")
        for path, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim >= 2 and not isinstance(module, nn.Embedding) and "embedding" not in name
    ]
    added = []
    for module, name, path in found:
        low_rank = LowRank(getattr(module, name), rank, generator(seed, "lora", 0, path))
        parametrize.register_parametrization(module, name, low_rank)
        added.append(low_rank)
    return added


def merge_lora(model: nn.Module) -> None:
    """The changed weights become the weights."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(False)


def logit_scale(clip: OpenClip) -> float:
    """What the model multiplies cosines by, at most 100 as CLIP bounds it."""
    return clip.model.logit_scale.detach().exp().clamp(max=100).item()


class TunedClip:
    """The cosine of picture and prompt, times the model's logit scale, as HPS is trained; one
    dimension.
    """

    def __init__(self, clip: OpenClip, rows: Sequence[Row], mode: str, rank: int, seed: int):
        self.clip, self.rows, self.mode = clip, rows, mode
        self.changes = nn.ModuleList(add_lora(clip.model, rank, seed))

    def scores(self, index: Tensor) -> Tensor:
        rows = [self.rows[i] for i in index.tolist()]
        pictures = _pictures([row[side] for row in rows for side in SIDES], self.clip, self.mode)
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))
        text = F.normalize(
            self.clip.model.encode_text(self.clip.tokenizer(prompts).to(self.clip.device)).float(),
            dim=-1,
        )
        text = text[[prompts.index(row["prompt"]) for row in rows]]
        image = self.clip.embed_images(pictures).unflatten(0, (-1, 2))  # (P, 2, D)
        return logit_scale(self.clip) * (image * text[:, None]).sum(-1, keepdim=True)

    @torch.no_grad()
    def cosines(self, index: Tensor) -> Tensor:
        both = torch.cat([self.scores(part)[..., 0] for part in index.split(64)])
        return both[:, 0] - both[:, 1]

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.changes.parameters()

    @torch.no_grad()
    def merge(self, dtype: str) -> None:
        """Into the weights, rounded to what will be written."""
        merge_lora(self.clip.model)
        for weight in self.clip.model.state_dict().values():
            if weight.is_floating_point():
                weight.copy_(weight.to(getattr(torch, dtype)))


class FrozenHead:
    """A scorer on features that were computed once."""

    def __init__(
        self,
        clip: OpenClip,
        rows: Sequence[Row],
        mode: str,
        scorer_type: type[Scorer],
        dimensions: Sequence[str],
        hidden: int,
        seed: int,
        progress: ProgressCallback | None,
    ):
        self.scale = logit_scale(clip)
        features = []
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            for row in part:
                both = [_read(row[side]) for side in SIDES]
                with torch.no_grad():
                    found = [
                        scorer_type.features(clip, one[None], [row["prompt"]], mode) for one in both
                    ]
                features.append(torch.cat(found))
            if progress:
                progress("features", start + len(part), len(rows), {})
        self.features = torch.stack(features)  # (P, 2, W)
        self.width = clip.embed_texts([""]).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "head"))
            self.scorer = scorer_type(self.width, dimensions, hidden).to(clip.device)

    def scores(self, index: Tensor) -> Tensor:
        return self.scorer(self.features[index])

    def cosines(self, index: Tensor) -> Tensor:
        both = self.scale * self.features[index, :, -self.width :].mean(-1)
        return both[:, 0] - both[:, 1]

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.scorer.parameters()


@dataclass(frozen=True)
class Targets:
    """What is known of P pairs in K dimensions."""

    labels: Tensor  # (P, K): FIRST, TIE, SECOND, or NaN where nobody knows
    wrong: Tensor  # (P, 1): the chance that a label is wrong
    margin: Tensor  # (P, 1): the lead that the better one should have


def pair_losses(scores: Tensor, targets: Targets, loss: str, theta: float) -> Tensor:
    """Scores (P, 2, K) -> one loss a pair and dimension that says something, (V,)."""
    delta = scores[:, 0] - scores[:, 1]
    labels = targets.labels
    if loss == "btt":
        return bradley_terry_ties(delta, labels, theta)
    decided = (labels == FIRST) | (labels == SECOND)
    signed = torch.where(labels == SECOND, -delta, delta)
    return bradley_terry(signed, label_smoothing=targets.wrong, margin=targets.margin)[decided]


def _fit(
    student: Student,
    learn: Tensor,
    targets: Targets,
    options: Row,
    progress: ProgressCallback | None,
) -> None:
    """AdamW over the pairs of ``learn``, in another order each epoch."""
    size = options["batch_size"]
    epochs = options["epochs"]
    seed = options["seed"]
    parameters = list(student.parameters())
    steps = epochs * math.ceil(len(learn) / size)
    optimizer = torch.optim.AdamW(
        parameters, lr=options["lr"], weight_decay=options["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_cosine, steps=steps))
    done = 0
    for epoch in range(epochs):
        order = learn[torch.randperm(len(learn), generator=generator(seed, "pairs", epoch))]
        for index in order.split(size):
            scores = student.scores(index)
            here = scores.device
            batch = Targets(
                *(of[index].to(here) for of in (targets.labels, targets.wrong, targets.margin))
            )
            values = pair_losses(scores, batch, options["loss"], options["theta"])
            done += 1
            if len(values):  # a batch of which nobody knows anything teaches nothing
                value = (
                    values.mean() + options["centre"] * centring(scores[:, 0], scores[:, 1]).mean()
                )
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            schedule.step()
            if progress:
                progress(
                    "train",
                    done,
                    steps,
                    {"loss": float(values.detach().mean()) if len(values) else math.nan},
                )


def warm_cosine(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to 0."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


# --- what was learned -----------------------------------------------------------------------------


def measure(delta: Tensor, label: Tensor) -> dict[str, Any]:
    """How well deltas (P,) fit labels (P,); pairs of which nobody knows are left out. None where
    there is no pair.
    """
    known = (label == FIRST) | (label == TIE) | (label == SECOND)
    delta = delta[known].double().cpu()
    label = label[known].cpu()
    decided = label != TIE
    with_ties, threshold = tie_calibrated_accuracy(delta, label)
    return {
        "decided pairs": int(decided.sum()),
        "accuracy": accuracy(delta[decided], label[decided]),
        "accuracy with ties": with_ties,
        "tie threshold": threshold,
        "calibration error": calibration_error(delta[decided] * label[decided]),
    }


def accuracy(delta: Tensor, label: Tensor) -> float | None:
    """Share of the pairs whose better one leads; no lead counts half."""
    right = (delta.sign() == label).double() + (delta == 0).double() / 2
    return right.mean().item() if len(right) else None


def tie_calibrated_accuracy(delta: Tensor, label: Tensor) -> tuple[float | None, float | None]:
    """(accuracy, threshold): the best that any threshold reaches where |delta| up to it says that
    the pair ties.

    Deutsch et al., EMNLP 2023, arXiv 2305.14324. Thresholds: below every |delta|, and each |delta|.
    (P,) in.
    """
    if not len(delta):
        return None, None
    size, order = delta.abs().sort()
    tie = (label[order] == TIE).double()
    right = ((delta.sign() == label)[order] & (tie == 0)).double()
    below = F.pad(tie.cumsum(0), (1, 0))  # ties among the k smallest
    above = right.sum() - F.pad(right.cumsum(0), (1, 0))
    possible = torch.cat(
        [torch.tensor([True]), size.diff() > 0, torch.tensor([True])]
    )  # equal sizes fall together
    reached = torch.where(possible, below + above, -1.0)
    best = int(reached.argmax())
    return (reached[best] / len(delta)).item(), size[best - 1].item() if best else 0.0


def calibration_error(lead: Tensor, bins: int = 10) -> float | None:
    """Expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599) of sigmoid(lead) as the
    chance to be right.

    ``lead`` (P,): score of the better one minus that of the other. Confidence is max(p, 1 - p), in
    equal bins over [1/2, 1].
    """
    if not len(lead):
        return None
    confidence = lead.abs().sigmoid()
    right = (lead > 0).double() + (lead == 0).double() / 2
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, place, right - confidence)
    return (gap.abs().sum() / len(lead)).item()


# --- what comes in --------------------------------------------------------------------------------


def _check(options: Row, dimensions: Sequence[str], kind: str) -> None:
    for key, wanted in (("mode", ("lora", "frozen")), ("loss", ("bt", "btt")), ("dtype", ("float32", "float16")),
                        ("resize", ("squash", "shortest"))):  # fmt: skip
        if options[key] not in wanted:
            raise UserError(f"{key}: {options[key]!r}, want one of {', '.join(wanted)}")
    for key in ("rank", "epochs", "batch_size"):
        if options[key] < 1:
            raise UserError(f"{key}: {options[key]}, want 1 or more")
    for key in ("hidden", "lr", "weight_decay", "centre"):
        if not 0 <= options[key] < math.inf:
            raise UserError(f"{key}: {options[key]}, want a number from 0")
    if not 1 <= options["theta"] < math.inf:
        raise UserError(f"theta: {options['theta']}, want a number from 1")
    if not 0 < options["held_out"] < 1:
        raise UserError(
            f"held_out: {options['held_out']}, want a share of the prompts between 0 and 1"
        )
    smoothing = options["label_smoothing"]
    if smoothing != "votes" and not (isinstance(smoothing, int | float) and 0 <= smoothing <= 1):
        raise UserError(f"label_smoothing: {smoothing!r}, want a number in [0, 1], or votes")
    if options["loss"] == "btt" and (smoothing != 0 or options["margin"] is not None):
        raise UserError(
            "label_smoothing, margin: go with loss bt; btt has ties for what is not sure"
        )
    if not dimensions or len(set(dimensions)) != len(dimensions):
        raise UserError(
            f"dimensions: {', '.join(dimensions) or 'none'}; want one or more different names"
        )
    if options["mode"] == "lora" and (len(dimensions) > 1 or kind == "video"):
        raise UserError(
            f"mode lora: one dimension of pictures, got {len(dimensions)} of a {kind}; want mode frozen"
        )


def _kind(rows: Sequence[Row]) -> str:
    """What the pairs are of."""
    if not rows:
        raise UserError("pairs: none to learn from")
    first = rows[0]["chosen"]
    moving = (
        first.ndim == 4 if isinstance(first, Tensor) else Path(first.name).suffix.lower() in VIDEOS
    )
    return "video" if moving else "image"


def _targets(
    rows: Sequence[Row],
    dimensions: Sequence[str],
    smoothing: float | Literal["votes"],
    margin: str | None,
) -> Targets:
    labels = [
        [_number(row.get(f"label/{d}", row.get("label", FIRST))) for d in dimensions]
        for row in rows
    ]
    wrong = [
        1 - _column(row, "votes", i, 1.0) if smoothing == "votes" else smoothing
        for i, row in enumerate(rows)
    ]
    lead = [
        0.0 if margin is None else _column(row, margin, i, math.inf) for i, row in enumerate(rows)
    ]
    return Targets(
        torch.tensor(labels), torch.tensor(wrong).float()[:, None], torch.tensor(lead)[:, None]
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _column(row: Row, name: str, index: int, highest: float) -> float:
    value = row.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= highest
        or value == math.inf
    ):
        raise UserError(
            f"pair {index}: {name} is {value!r}, want a number from 0"
            + ("" if highest > 1 else " to 1")
        )
    return float(value)


def _split(rows: Sequence[Row], held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the pairs to learn from and of those to measure on: no prompt on both sides."""
    prompts = sorted({row["prompt"] for row in rows})
    if len(prompts) < 2:
        raise UserError(f"pairs: all of the prompt {prompts[0]!r}; want several, to hold some out")
    count = min(max(1, round(held_out * len(prompts))), len(prompts) - 1)
    order = torch.randperm(len(prompts), generator=generator(seed, "held out")).tolist()
    held = {prompts[place] for place in order[:count]}
    inside = torch.tensor([row["prompt"] in held for row in rows])
    return torch.nonzero(~inside)[:, 0], torch.nonzero(inside)[:, 0]


def _read(media: MediaFile | Tensor) -> Tensor:
    if isinstance(media, Tensor):
        return media
    try:
        return media.read()
    except UnreadablePicture as error:
        raise UserError(
            f"{media.path or media.name}: {error}; want every picture of a pair readable"
        ) from error


def _pictures(media: Sequence[MediaFile | Tensor], clip: OpenClip, mode: str) -> Tensor:
    """Decoded, at the model's size, (N, 3, size, size)."""
    with ThreadPoolExecutor(READERS) as pool:
        found = (
            list(pool.map(_read, media))
            if not isinstance(media[0], Tensor)
            else list(map(_read, media))
        )
    return torch.cat(
        [fit_square(one[None].to(clip.device, torch.float32), clip.size, mode) for one in found]
    )


# --- what goes out --------------------------------------------------------------------------------


def _new_folder(out: Path) -> Path:
    place = out.expanduser().resolve()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{out}: is there already; want a new or empty folder")
    return place


def _normalisation(scores: Tensor) -> dict[str, Any]:
    """Mean and standard deviation of each dimension over the held-out media, (P, 2, K)."""
    std, mean = torch.std_mean(scores.flatten(0, 1), 0, correction=0)
    return {"mean": mean.tolist(), "std": std.clamp(min=1e-6).tolist()}


def _relative(base: str, place: Path) -> str:
    """A base on the disk as the head's folder sees it, so that both can be moved; else its name."""
    return (
        os.path.relpath(Path(base).expanduser().resolve(), place)
        if Path(base).expanduser().exists()
        else base
    )


def _save_clip(
    folder: Path, source: str, pretrained: str | None, clip: OpenClip, dtype: str
) -> None:
    """An open_clip folder: the base's configuration and tokenizer, the new weights."""
    import open_clip
    from safetensors.torch import save_file

    if pretrained is None:
        for file in Path(source).iterdir():
            if file.suffix in (".json", ".txt", ".model") and file.name != MEASURED:
                shutil.copyfile(file, folder / file.name)
    else:
        preprocess = {
            key: clip.model.visual.preprocess_cfg[key]
            for key in ("mean", "std", "interpolation", "resize_mode")
        }
        config = {"model_cfg": open_clip.get_model_config(source), "preprocess_cfg": preprocess}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    kept = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in clip.model.state_dict().items()
    }
    save_file(
        {name: value.cpu().contiguous() for name, value in kept.items()},
        folder / "open_clip_model.safetensors",
    )
