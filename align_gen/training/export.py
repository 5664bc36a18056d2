"""Export the result of a run: weights that diffusers loads, and their model card."""

import re
from collections.abc import Sequence
from pathlib import Path

from .. import bundled
from ..errors import printable, writing
from ..files import whole_folder
from ..galleries.comparison import compare
from ..galleries.intervals import Change
from ..galleries.table import ScoresTable
from ..galleries.verdicts import independent
from ..methods.state import TrainState
from ..portable import portable_name, portable_yaml
from ..reward_heads.base import label
from .recipe import Recipe
from .sharding import unsharded

LORA = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({source})
pipeline.load_lora_weights("path/to/this/folder")
image = pipeline({prompt}).images[0]"""
FULL = """from diffusers import DiffusionPipeline

# Each folder here is a component of the pipeline, and takes the place of the original.
pipeline = DiffusionPipeline.from_pretrained({source})
print(pipeline.components.keys())"""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
MARKS = re.compile(r"([\\`*_{}\[\]<>#|!~])")  # of Markdown


def export(state: TrainState, folder: Path, card: str | None = None) -> None:
    """Write what was trained, averaged where there is an average, whole or not at all.

    All processes must call this.

    Raises:
        RunFailure: the folder cannot be written.
    """
    with state.averaged(), unsharded(state.model), writing(folder):
        if state.accelerator.is_main_process:
            with whole_folder(folder) as part:
                state.model.export(part)
                if card is not None:
                    (part / "README.md").write_text(card)
    state.accelerator.wait_for_everyone()


def model_card(recipe: Recipe, before: ScoresTable, after: ScoresTable) -> str:
    """Model card in Markdown with the hub's header: what was trained, and what it measured.

    The card is uploaded as it is: names in it are text and no Markdown, and of a folder of this
    machine there is the name alone.
    """
    from huggingface_hub import ModelCardData

    kind = "lora" if recipe.model.lora is not None else "full"
    base = recipe.model.path
    # Only owner/model can be the base's id on the hub; a local path would be a broken link.
    is_id = HUB_NAME.fullmatch(base) is not None and not Path(base).exists()
    header = ModelCardData(
        base_model=base if is_id else None,
        library_name="diffusers",
        tags=[recipe.method.name, kind, "align_gen"],
    )
    optimised = [label(reward) for reward in recipe.rewards]
    held_out = independent(after, [label(reward) for reward in recipe.eval_rewards], optimised)
    name = _text(base)
    changes = "\n".join(
        f"| {_text(column)} | {c.before:.4f} | {c.after:.4f} | {_interval(c)} | {c.n} |"
        for column, c in compare(before, after).columns.items()
    )
    weights = (
        "an exponential moving average over training (`optim.ema`)"
        if recipe.optim.ema is not None
        else "those of the last step (no `optim.ema`)"
    )
    source = recipe.prompts.train or recipe.data.pairs or recipe.data.media
    prompts = len({row.get("prompt") for row in after.rows})
    pictures = len(after.rows)
    return f"""---
{header.to_yaml().rstrip()}
---
# {name}, fine-tuned by {recipe.method.name.upper()}

Made with align_gen. The licence is that of the base model, {name}; see there before you share this.

- Optimised: {_names(optimised)}.
- Measured and never optimised: {_names(held_out)}.
- Learned from: {_text(source)}; measured on
  {_text(recipe.prompts.eval)}.
- {recipe.run.steps} steps, seed {recipe.run.seed}. The weights are {weights}.

```python
{_snippet(base, kind, after)}
```

{prompts} held-out prompts, {pictures} pictures; a pair is one prompt and seed before and after.

| reward | before | after | change, 95 % interval | pairs |
|---|---|---|---|---|
{changes}

The complete recipe:

```yaml
{portable_yaml(recipe.to_yaml()).rstrip()}
```
"""


def _snippet(base: str, kind: str, after: ScoresTable) -> str:
    """The lines of Python that load what was trained; texts in it are Python's own literals."""
    prompt = str(after.rows[0].get("prompt", "")) if after.rows else ""
    source = _literal(portable_name(base))
    template = LORA if kind == "lora" else FULL
    if base in bundled.models():
        # Not on the hub: align_gen knows where it lies.
        source = f"model_path({source})"
        template = f"from align_gen.bundled import model_path\n{template}"
    return template.format(source=source, prompt=_literal(prompt))


def _literal(text: str) -> str:
    """A text as Python writes it, in the quotes of the other lines where it has none itself."""
    return repr(text) if '"' in text or "'" in text else f'"{repr(text)[1:-1]}"'


def _text(name: object) -> str:
    """A name as one line of Markdown's plain text, without the folders of this machine."""
    return MARKS.sub(r"\\\1", printable(portable_name(str(name))))


def _names(rewards: Sequence[str]) -> str:
    return ", ".join(map(_text, rewards)) or "nothing"


def _interval(change: Change) -> str:
    if change.prompts == 1:
        return "none (one prompt)"
    return f"[{change.ci_low:+.4f}, {change.ci_high:+.4f}]"
