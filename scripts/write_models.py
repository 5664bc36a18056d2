"""Write docs/models.md: what every family takes, read off its adapter at the published size.

python scripts/write_models.py [--check]
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from align_gen import pipelines
from align_gen.pipelines.skeleton import PUBLISHED, skeleton

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def row(file: Path) -> str:
    """One family as a row of Markdown."""
    description: dict[str, Any] = json.loads(file.read_text())
    model: Any = pipelines.load(skeleton(description, torch.bfloat16))
    scales = ", ".join(f"`{name}` {value:g}" for name, value in model.guidances.items())
    count = sum(p.numel() for part in model.trainable.values() for p in part.parameters())
    size = "x".join(map(str, model.default_size))
    if model.default_frames > 1:
        size += f", {model.default_frames} frames"
    trained = f"{', '.join(f'`{name}`' for name in model.trainable)} ({count / 1e9:.2f} B)"
    inputs = ", ".join(f"`{name}`" for name in model.required_inputs) or "–"
    checkpoint = f"`{description['repo']}`"
    pipeline = f"`{description['model_index']['_class_name']}`"
    cells = (checkpoint, pipeline, trained, size, scales, inputs)
    return f"| {' | '.join(cells)} |"


def notes() -> str:
    """What the adapters say of themselves, one class each."""
    classes = {}
    for file in sorted(PUBLISHED.glob("*.json")):
        model = pipelines.load(skeleton(json.loads(file.read_text()), torch.bfloat16))
        text = inspect.cleandoc(type(model).__doc__ or "")
        # A paragraph is one line, so that wrapping a docstring anew leaves the page as it is.
        classes[type(model).__name__] = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    return "\n\n".join(f"**{name}.** {text.replace('``', '`')}" for name, text in classes.items())


def page() -> str:
    """As Markdown."""
    rows = "\n".join(row(file) for file in sorted(PUBLISHED.glob("*.json")))
    return f"""# Models

Written by `python scripts/write_models.py` from the adapters, at the published sizes \
(`assets/published`, no weights).
Name a checkpoint of one of these classes by its folder or hub name. Published \
weights were not loaded yet
([status.md](status.md)): run `align-gen check` on a checkpoint first.

- **guidance**: the scales by name with their defaults. A bare number is the first one; in Python,
  `{{"text": 5, "image": 1.5}}` names them. "text" is classifier-free: above 1 it doubles \
the calls. "embedded" is an
  input of the network.
- **wants**: pictures that `encode_prompts` takes besides texts, (B, 3, H, W) in [0, 1]. \
`finetune` and `sample` refuse
  checkpoints with an entry here, because recipes and galleries carry no such pictures yet; \
`check` accepts them.
- `align-gen check MODEL` verifies that align_gen reproduces diffusers on your checkpoint.
  `align-gen finetune RECIPE --set model.path=MODEL --dry-run` prints what training needs. \
[memory.md](memory.md) has
  what saves memory.

| checkpoint | pipeline | trains | default size | guidance | wants |
|---|---|---|---|---|---|
{rows}

## Notes

{notes()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not args.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/models.md is out of date: python scripts/write_models.py")


if __name__ == "__main__":
    main()
