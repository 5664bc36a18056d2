"""The command line in this process, for tests of commands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from align_gen.galleries.gallery import write_gallery


@dataclass
class Done:
    code: int
    out: str
    err: str


Cli = Callable[..., Done]


def mistake(done: Done) -> str:
    """The one line of a mistake, after progress if there was any."""
    assert done.code == 2, done
    assert (
        done.err.startswith("align-gen: ") and done.err.count("\n") == 1 and len(done.err) < 800
    ), done.err
    assert "Traceback" not in done.err and not done.out
    return done.err


def coloured(folder: Path, shift: float) -> Path:
    """Eight plain pictures of four prompts, from grey towards green."""
    levels = torch.linspace(0.2, 0.5, 8).view(8, 1, 1, 1).expand(8, 3, 8, 8).clone()
    levels[:, 1] += shift
    write_gallery(folder, levels, [{"prompt": f"p{i // 2}", "seed": i % 2} for i in range(8)])
    return folder
