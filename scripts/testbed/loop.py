"""One resumable training loop, and how weights and cards are written."""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .captions import Row


def generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def train(
    name: str,
    model: Any,
    loss_at: Callable[[Any, int], Tensor],
    *,
    steps: int,
    lr: float,
    work: Path,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    warmup: int = 200,
    save_every: int = 250,
) -> tuple[Any, float]:
    """AdamW with warm-up and cosine decay, resumable.

    Returns the model, averaged where ``ema`` > 0, in eval mode, and the seconds spent.
    """
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{name}.state.pt"

    # Weights decay, gains and biases do not.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )

    # Resumed where a state lies, with its average and its clock.
    average = copy.deepcopy(model).requires_grad_(False)
    start, seconds = 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        seconds = state["seconds"]
    model.train()
    shown = 0.0
    clock = time.time()
    for step in range(start, steps):
        # Warm-up, then a cosine down to 2 %.
        for group in optimizer.param_groups:
            progress = step / steps
            group["lr"] = (
                lr
                * min(1, (step + 1) / warmup)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            )

        # Batches depend on the step alone, so a resumed run sees the same.
        loss = loss_at(model, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        # Young averages forget faster: the first weights are random.
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(
                average.state_dict().values(), model.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(new, 1 - decay)
                else:
                    mean.copy_(new)

        # Progress, and now and then the state, whole or not at all.
        shown += loss.item()
        if (step + 1) % 50 == 0:
            spent = seconds + time.time() - clock
            print(f"{name} step {step + 1}/{steps} loss {shown / 50:.4f} {spent:.0f}s", flush=True)
            shown = 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            now = seconds + time.time() - clock
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": step + 1, "seconds": now}, file.with_suffix(".tmp"))
            os.replace(file.with_suffix(".tmp"), file)
    return average.eval(), seconds + time.time() - clock


def save_half(model: nn.Module, file: Path) -> None:
    """Write the weights in half precision, and round the model to them before it is measured."""
    from safetensors.torch import save_file

    state = model.state_dict()
    half = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in state.items()
    }
    save_file(half, file)
    model.load_state_dict({key: value.to(state[key].dtype) for key, value in half.items()})


def write_card(folder: Path, title: str, facts: Row) -> None:
    """Write README.md with data, licence and measured numbers, and the numbers as JSON."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    text = f"""---
license: mit
---
# {title}

Trained by `scripts/train_testbed.py {folder.name}` of align_gen on emoji \
pictures of three groups of things (smileys,
animals and nature, food and drink). A testbed, small on purpose: it knows 459 things at 64x64 \
and nothing else.

Data: Fluent Emoji 3D and flat (Microsoft, MIT), Noto Emoji (Google, Apache-2.0), labels of \
emojibase (MIT).
Twemoji (CC-BY 4.0) was used for evaluation only.

| measured | value |
|---|---|
{rows}
"""
    (folder / "README.md").write_text(text)
    (folder / "measured.json").write_text(json.dumps(facts, indent=1) + "\n")
