"""Export the result of a run: weights that diffusers loads, and their model card."""

from collections.abc import Iterable
from pathlib import Path

from .. import bundled
from ..errors import writing
from ..files import whole_folder
from ..galleries.comparison import compare
from ..galleries.table import ScoresTable
from ..methods.state import TrainState
from .recipe import Recipe
from .sharding import unsharded

LORA = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({source})
pipeline.load_lora_weights("path/to/this/folder")
image = pipeline("{prompt}").images[0]"""
FULL = """from diffusers import DiffusionPipeline

# Each folder here is a component of the pipeline, and takes the place of the original.
pipeline = DiffusionPipeline.from_pretrained({source})
print(pipeline.components.keys())"""


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
    """Model card in Markdown with the hub's header: what was trained, and what it measured."""
    from huggingface_hub import ModelCardData

    kind = "lora" if recipe.model.lora is not None else "full"
    base = recipe.model.path
    # Only owner/model can be the base's id on the hub; a local path would be a broken link.
    header = ModelCardData(
        base_model=base if base.count("/") == 1 else None,
        library_name="diffusers",
        tags=[recipe.method.name, kind, "align_gen"],
    )
    prompt = str(after.rows[0].get("prompt", "")) if after.rows else ""
    # A quotation mark in the prompt would end the snippet's own text.
    source = f'"{base}"'
    template = LORA if kind == "lora" else FULL
    if base in bundled.models():
        # Not on the hub: align_gen knows where it lies.
        source = f'model_path("{base}")'
        template = f"from align_gen.bundled import model_path\n{template}"
    snippet = template.format(source=source, prompt=prompt.replace('"', "'"))
    changes = "\n".join(
        f"| {name} | {c.before:.4f} | {c.after:.4f} | [{c.ci_low:+.4f}, {c.ci_high:+.4f}] | {c.n} |"
        for name, c in compare(before, after).columns.items()
    )
    weights = (
        "an exponential moving average over training (`optim.ema`)"
        if recipe.optim.ema is not None
        else "those of the last step (no `optim.ema`)"
    )
    prompts = len({row.get("prompt") for row in after.rows})
    pictures = len(after.rows)
    return f"""---
{header.to_yaml().rstrip()}
---
# {base}, fine-tuned by {recipe.method.name.upper()}

Made with align_gen. The licence is that of the base model, {base}; see there before you share this.

- Optimised: {_names(recipe.rewards)}.
- Measured and never optimised: {_names(recipe.eval_rewards)}.
- Learned from: {recipe.prompts.train or recipe.data.pairs or recipe.data.media}; measured on
  {recipe.prompts.eval}.
- {recipe.run.steps} steps, seed {recipe.run.seed}. The weights are {weights}.

```python
{snippet}
```

{prompts} held-out prompts, {pictures} pictures; a pair is one prompt and seed before and after.

| reward | before | after | change, 95 % interval | pairs |
|---|---|---|---|---|
{changes}

The complete recipe:

```yaml
{recipe.to_yaml().rstrip()}
```
"""


def _names(rewards: Iterable[object]) -> str:
    return ", ".join(map(str, rewards)) or "nothing"
