"""The model card of an export."""

from ..galleries.comparison import compare
from ..galleries.table import ScoresTable
from .recipe import Recipe


def card(recipe: Recipe, before: ScoresTable, after: ScoresTable) -> str:
    """What was trained, on what, towards what, and what was measured, as Markdown with the hub's
    header.
    """
    kind = "lora" if recipe.model.lora is not None else "full"
    loading = {
        "lora": 'pipeline.load_lora_weights("export")',
        "full": "replace the trained component of the pipeline by the one in this folder",
    }[kind]
    rows = "\n".join(
        f"| {name} | {c.before:.4f} | {c.after:.4f} | [{c.ci_low:+.4f}, {c.ci_high:+.4f}] | {c.n} |"
        for name, c in compare(before, after).columns.items()
    )
    optimised, held_out = (
        ", ".join(map(str, names)) for names in (recipe.rewards, recipe.eval_rewards)
    )
    weights = "exponential moving average" if recipe.optim.ema is not None else "raw"
    return f"""---
base_model: {recipe.model.path}
library_name: diffusers
tags: [{recipe.method["name"]}, {kind}, align_gen]
---
# {recipe.model.path}, fine-tuned by {recipe.method["name"].upper()}

Optimised: {optimised}. Measured and never optimised: {held_out or "nothing"}.
{recipe.run.steps} steps, seed {recipe.run.seed}; weights: {weights}. To load: `{loading}`.

| held-out prompts | before | after | change, 95 % interval | pairs |
|---|---|---|---|---|
{rows}

The complete recipe:

```yaml
{recipe.to_yaml().rstrip()}
```
"""
