"""Train a reward head on preference pairs: a LoRA-tuned CLIP, or a head on frozen features."""

import copy
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import bundled
from ..errors import RunFailure, UserError, user_mistakes, writing
from ..files import whole_folder
from ..galleries.pairs import read_pairs
from ..losses import bradley_terry, bradley_terry_ties, centring
from ..losses.preference import FIRST, SECOND
from ..pipelines.seeding import generator
from ..precision import dtype_of
from ..progress import ProgressCallback, silent
from ..reward_heads.backbones.head_folder import save_head
from ..reward_heads.backbones.open_clip_model import OpenClip
from ..reward_heads.backbones.scorer import Scorer
from ..reward_heads.heads.trained import ImageScorer
from ..reward_heads.heads.video_reward import VideoScorer
from . import export
from .agreement import measure, worse_than_base
from .learners import FrozenHead, Learner, TunedClip
from .options import RewardTraining
from .targets import Row, Targets, kind_of, split

log = logging.getLogger("align_gen")


def train_reward(
    pairs: str | Path | Sequence[Row],
    base: str,
    out: str | Path,
    options: RewardTraining | Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    progress: ProgressCallback = silent,
    **more: Any,
) -> dict[str, Any]:
    """Train a reward on preference pairs; write the head and what it measures on held-out prompts.

    A pair is a row with "prompt", "chosen" and "rejected" (as of ``read_pairs``, or tensors in [0,
    1]). Which side is better in dimension D stands in "label/D", else in "label": 1 the chosen, -1
    the rejected, 0 a tie, anything else nobody knows; without either column the chosen is better.
    The same arguments give the same numbers on the same machine.

    Args:
        pairs: rows, or where ``read_pairs`` finds them.
        base: an open_clip folder, a bundled model, an architecture with ``pretrained``; in mode
            frozen, a hub name too.
        out: a new or empty folder. "lora" writes an open_clip folder as any other; "frozen" writes
            head.safetensors and head.json, for the rewards ``trained`` and, of videos,
            ``video_reward``. Both add measured.json and a model card.
        options: see ``RewardTraining``.
        device: where to compute.
        progress: called with (phase, done, total, numbers); phases are "features" and "train".
        more: single options by keyword, over ``options``.

    Returns:
        What measured.json holds: counts, options, and for each dimension, before ("base", the
        base's cosine) and after ("trained"), accuracy without and with ties and the calibration
        error. A dimension on which the head is worse than its base is logged as a warning.

    Raises:
        UserError: an option that is none, pairs that cannot be read or split, an ``out`` that holds
            something, or is being written.
        RunFailure: it diverged, or could not be written; nothing is.
    """
    # Everything that can be refused is looked at before a model is loaded.
    asked = RewardTraining.parse(options, more)
    rows = list(read_pairs(pairs) if isinstance(pairs, str | Path) else pairs)
    kind = kind_of(rows)
    if kind == "video" and asked.mode == "lora":
        raise UserError("mode lora: one dimension of pictures, got videos; want mode frozen")
    target = export.new_folder(Path(out))
    with export.held(target):
        measured = _train(rows, kind, base, target, asked, device, progress)
    for sentence in worse_than_base(measured):
        log.warning("%s: %s", out, sentence)
    return measured


def _train(
    rows: Sequence[Row],
    kind: Literal["image", "video"],
    base: str,
    target: Path,
    asked: RewardTraining,
    device: str,
    progress: ProgressCallback,
) -> dict[str, Any]:
    """Learn, measure, and write the folder ``target``; returns what was measured."""
    began = time.monotonic()
    targets = Targets.of(rows, asked.dimensions, asked.label_smoothing, asked.margin)
    learn, hold = split(rows, asked.held_out, asked.seed)

    with user_mistakes():
        start = Base.load(base, asked, device)
        learner = _learner(start.clip, rows, kind, asked, progress)

    # The base is measured first: mode lora changes it in place. A merged CLIP is measured in the
    # dtype that is written, for rounding can cost accuracy.
    before = learner.cosines(hold)
    _fit(learner, learn, targets, asked, progress)
    if isinstance(learner, TunedClip):
        learner.merge(dtype_of(asked.dtype))
    with torch.no_grad():
        after = torch.cat([learner.scores(part) for part in hold.split(asked.batch_size)])
    _require_finite(float(after.abs().max()), "the end", asked)

    labels = targets.labels[hold]
    measured = {
        "pairs": len(learn),
        "held-out pairs": len(hold),
        "held-out prompts": len({rows[i]["prompt"] for i in hold.tolist()}),
        "base": {name: measure(before, labels[:, k]) for k, name in enumerate(asked.dimensions)},
        "trained": _measured(after, labels, asked.dimensions),
        "options": asked.recorded(),
        "seconds": round(time.monotonic() - began, 1),
    }

    # The folder appears when all of it is there.
    with writing(target), whole_folder(target) as folder:
        _save(folder, target, learner, start, asked, after)
        (folder / export.MEASURED).write_text(json.dumps(measured, indent=1) + "\n")
        (folder / export.CARD).write_text(export.model_card(measured, base, kind, target))
        # Hours have passed: what was put there meanwhile stays.
        export.new_folder(target)
    return measured


# --- the base and who learns ----------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The CLIP that training starts from."""

    name: str  # as the caller gave it
    source: str  # a folder, a hub name or an architecture
    loaded: OpenClip  # shared with every reward of the same base: it must not learn
    clip: OpenClip  # a copy that may

    @classmethod
    def load(cls, name: str, options: RewardTraining, device: str) -> "Base":
        """Load the base by its name; UserError where mode lora could not write it again."""
        source = bundled.model_path(name)
        loaded = OpenClip.load(source, options.pretrained)
        clip = OpenClip(copy.deepcopy(loaded.model), loaded.tokenizer).to(device)
        is_folder = (Path(source) / export.CONFIG).is_file()
        if options.mode == "lora" and options.pretrained is None and not is_folder:
            raise UserError(
                f"base {name}: lora wants an open_clip folder, or an architecture with pretrained"
            )
        return cls(name, source, loaded, clip)


def _learner(
    clip: OpenClip,
    rows: Sequence[Row],
    kind: Literal["image", "video"],
    options: RewardTraining,
    progress: ProgressCallback,
) -> Learner:
    """The learner of the mode, on the rows."""
    if options.mode == "lora":
        return TunedClip(clip, rows, options)
    scorer_type: type[Scorer] = VideoScorer if kind == "video" else ImageScorer
    return FrozenHead(clip, rows, scorer_type, options, progress)


# --- learning -------------------------------------------------------------------------------------


def pair_losses(scores: Tensor, targets: Targets, loss: str, theta: float) -> Tensor:
    """Scores (P, 2, K) -> a loss for each pair and dimension whose label says something, (V,)."""
    delta = scores[:, 0] - scores[:, 1]
    labels = targets.labels
    if loss == "btt":
        return bradley_terry_ties(delta, labels, theta)
    decided = (labels == FIRST) | (labels == SECOND)
    # A label of -1 says that the other side leads; ties and unknowns drop out at the end.
    signed = torch.where(labels == SECOND, -delta, delta)
    return bradley_terry(signed, label_smoothing=targets.wrong, margin=targets.margin)[decided]


def _fit(
    learner: Learner,
    learn: Tensor,
    targets: Targets,
    options: RewardTraining,
    progress: ProgressCallback,
) -> None:
    """AdamW over the pairs numbered in ``learn`` (P,), in another order each epoch."""
    parameters = list(learner.parameters())
    steps = options.epochs * math.ceil(len(learn) / options.batch_size)
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_cosine, steps=steps))
    done = 0
    for epoch in range(options.epochs):
        shuffled = generator(options.seed, "pairs", epoch)
        # Seeded by the epoch: a longer training begins with the same batches.
        order = learn[torch.randperm(len(learn), generator=shuffled)]
        for index in order.split(options.batch_size):
            scores = learner.scores(index)
            batch = targets.at(index, scores.device)
            values = pair_losses(scores, batch, options.loss, options.theta)
            done += 1
            loss = math.nan
            # A batch without any known label teaches nothing; the learning rate still moves on.
            if len(values):
                loss = float(values.detach().mean())
                _require_finite(loss, f"step {done}", options)
                # Pairs know only differences: without this term, the scores' level would drift.
                off_centre = centring(scores[:, 0], scores[:, 1]).mean()
                total = values.mean() + options.centre * off_centre
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            schedule.step()
            progress("train", done, steps, {"loss": loss})


def _require_finite(value: float, where: str, options: RewardTraining) -> None:
    """RunFailure where the training has diverged: nothing of it is worth to be written."""
    if not math.isfinite(value):
        raise RunFailure(
            f"train-reward: diverged at {where}: the loss, or a score, is {value}; "
            f"want lr below {options.learning_rate:g}"
        )


def warm_cosine(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to 0."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


# --- the result -----------------------------------------------------------------------------------


def _measured(scores: Tensor, labels: Tensor, dimensions: Sequence[str]) -> dict[str, Any]:
    """Agreement of scores (P, 2, K) with labels (P, K), for each dimension."""
    delta = scores[:, 0] - scores[:, 1]
    return {name: measure(delta[:, k], labels[:, k]) for k, name in enumerate(dimensions)}


def _save(
    folder: Path,
    target: Path,
    learner: Learner,
    base: Base,
    options: RewardTraining,
    scores: Tensor,
) -> None:
    """Write what was learned into ``folder``, which becomes ``target``.

    ``scores`` (P, 2, K) of the held-out pairs normalise a frozen head.
    """
    if not isinstance(learner, FrozenHead):
        dtype = dtype_of(options.dtype)
        export.save_clip(folder, base.source, options.pretrained, base.clip, dtype)
        return
    # A bundled base is found again by its name, on every machine; a folder by its relative path.
    is_bundled = base.source != base.name
    about = export.normalisation(scores) | {
        "base": base.name if is_bundled else export.relative_to(target, base.name),
        "pretrained": options.pretrained,
        "base_sha256": base.loaded.sha256,
        "resize": options.resize,
        "loss": options.loss,
    }
    save_head(folder, learner.scorer.cpu(), about)
