"""Files of reward training: a CLIP or a head, its measured figures, and a model card."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, writing_to
from ..locks import beside, locked
from ..reward_heads.backbones.open_clip_model import OpenClip
from .agreement import worse_than_base

MEASURED = "measured.json"
CONFIG = "open_clip_config.json"
CARD = "README.md"


def new_folder(out: Path) -> Path:
    """The absolute path of a folder to write; UserError where something is there already."""
    target = out.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{out}: is there already; want a new or empty folder")
    return target


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Hold a folder that ``new_folder`` allowed, so that of two trainings one is refused at once.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        with writing_to(target, "a folder that can"):
            stack.enter_context(locked(beside(target), target))
        new_folder(target)
        yield


def normalisation(scores: Tensor) -> dict[str, Any]:
    """Mean and standard deviation of each dimension over the held-out media, (P, 2, K)."""
    std, mean = torch.std_mean(scores.flatten(0, 1), 0, correction=0)
    return {"mean": mean.tolist(), "std": std.clamp(min=1e-6).tolist()}


def relative_to(folder: Path, base: str) -> str:
    """A base on disk relative to the head's folder, so that both can be moved; else its name."""
    path = Path(base).expanduser()
    return os.path.relpath(path.resolve(), folder) if path.exists() else base


def save_clip(
    folder: Path, source: str, pretrained: str | None, clip: OpenClip, dtype: torch.dtype
) -> None:
    """Write an open_clip folder: the base's configuration and tokenizer, the new weights."""
    import open_clip
    from safetensors.torch import save_file

    # A folder hands on its own files; of an architecture, open_clip knows what they would say.
    if pretrained is None:
        for file in Path(source).iterdir():
            if file.suffix in (".json", ".txt", ".model") and file.name != MEASURED:
                shutil.copyfile(file, folder / file.name)
    else:
        keys = ("mean", "std", "interpolation", "resize_mode")
        preprocess = {key: clip.model.visual.preprocess_cfg[key] for key in keys}
        config = {"model_cfg": open_clip.get_model_config(source), "preprocess_cfg": preprocess}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    weights = {}
    for name, value in clip.model.state_dict().items():
        rounded = value.to(dtype) if value.is_floating_point() else value
        weights[name] = rounded.cpu().contiguous()
    save_file(weights, folder / "open_clip_model.safetensors")


# --- the model card -------------------------------------------------------------------------------

LOADERS = {  # (mode, kind of media) -> the reward that reads the folder
    ("lora", "image"): "clip",
    ("frozen", "image"): "trained",
    ("frozen", "video"): "video_reward",
}
SHAPES = {"image": "(B, 3, H, W)", "video": "(B, F, 3, H, W)"}


def model_card(measured: Mapping[str, Any], base: str, kind: str, folder: Path) -> str:
    """Base, licence, pairs, held-out accuracy and how to load, as Markdown with the hub's header.

    ``kind``: "image" or "video". ``folder``: where the head will be.
    """
    from huggingface_hub import ModelCardData

    options = measured["options"]
    tags = ["reward-model", options["mode"], "align_gen"]
    # No id of the base stands in the header: a folder or a bundled name would be none of the hub's.
    header = ModelCardData(license="other", license_name="as-the-base", tags=tags)
    reward = LOADERS[options["mode"], kind]
    rows = "\n".join(
        f"| {name} | {_share(measured['base'][name])} | {_share(figures)} "
        f"| {figures['decided pairs']} |"
        for name, figures in measured["trained"].items()
    )
    return f"""---
{header.to_yaml()}
---
# {folder.name}: a reward trained on preference pairs

Base: `{base}`, mode `{options["mode"]}`. Licence: as the base's.
Learned from {measured["pairs"]} pairs; {measured["held-out pairs"]} pairs of
{measured["held-out prompts"]} other prompts were held out and only measured.

| dimension | the base is right on | this head is right on | held-out pairs without ties |
|---|---|---|---|
{rows}
{_warnings(worse_than_base(measured))}
To load, with media {SHAPES[kind]} in [0, 1] and a prompt each:

```python
from align_gen.reward_heads import load

head = load({reward!r}, path={str(folder)!r})
scores = head(media, prompts)  # (B,), higher is better
```

On the command line: `align-gen score GALLERY --reward {reward}:path={folder}`.

All options and figures are in `{MEASURED}`.
"""


def _share(figures: Mapping[str, Any]) -> str:
    """An accuracy as a percentage."""
    value = figures["accuracy"]
    return "unknown" if value is None else f"{value:.1%}"


def _warnings(sentences: Sequence[str]) -> str:
    """Sentences as a paragraph of their own each."""
    return "".join(f"\n**{sentence}.**\n" for sentence in sentences)
