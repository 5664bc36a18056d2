"""Write docs/matrix.md: every method on every family, run small; see ``make matrix``.

    python scripts/write_matrix.py [--only FAMILY]

A cell is two steps of the method on a tiny random pipeline of the real classes, with guidance: the
loss is finite, what is trained changed, and the export loads into a fresh pipeline, which then
draws the same. A cell that fails says why.
"""

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tiny pipelines are the tests'

from align_gen import methods  # noqa: E402
from align_gen.check.subject import PROMPTS, Subject  # noqa: E402
from align_gen.methods.batches import Batch, Media, Prompts, Sampling  # noqa: E402
from align_gen.methods.state import TrainState  # noqa: E402
from align_gen.pipelines import LoraOptions  # noqa: E402
from align_gen.reward_heads import reward_set  # noqa: E402
from align_gen.training.engine import counted_calls  # noqa: E402
from tests.tiny import PIPELINES, subject  # noqa: E402

TRAINED = {"LoRA": LoraOptions(rank=2), "all weights": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "ddpo": {"images_per_prompt": 3, "clip": 1e-2},
    "dpo": {"online": True, "images_per_prompt": 3, "gradient_steps": 2},
    "grpo": {"images_per_prompt": 3, "clip": 1e-2, "kl": 0.1},
    "nft": {"images_per_prompt": 3, "times_per_image": 2},
    "prdp": {"images_per_prompt": 3, "gradient_steps": 2, "clip": 1e-2},
    "raft": {"images_per_prompt": 3},
    "rwr": {"images_per_prompt": 3, "weights": "exponential", "min_ess": 1.0},
    "sft": {"images_per_prompt": 1},
}
STEPS, SCALE = 3, 3.0


def redness(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Of pictures or videos."""
    return (media[..., 0, :, :] - media[..., 2, :, :]).flatten(1).mean(1)


def cell(family: str, method: str, lora: LoraOptions | None) -> str:
    """Say yes, or why not."""
    one = subject(family)
    torch.manual_seed(0)
    try:
        if lora is None:
            one.model.train_full()
        else:
            one.model.train_lora(lora)
        before = [parameter.detach().clone() for parameter in one.model.parameters()]
        losses = two_steps(one, method)
        if not all(map(math.isfinite, losses)):
            return f"loss {losses}"
        moved = sum(
            not torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True)
        )
        if moved < 0.5 * len(before):
            return f"only {moved} of {len(before)} tensors changed"
        return reloaded(one, family)
    except Exception as error:  # the cell's answer
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def two_steps(one: Subject, method: str) -> list[float]:
    """Their losses."""
    model = one.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = TrainState(model, optimizer, Accelerator(cpu=True), max_grad_norm=1.0, micro_batch=4)
    sampling = Sampling(num_inference_steps=STEPS, guidance_scale=SCALE)

    # Families that take a picture beside each prompt refuse empty captions.
    options_class = methods.options_of(method)
    settings = {"prompts_per_step": len(PROMPTS), **OPTIONS[method]}
    if model.required_inputs and "dropout" in options_class.model_fields:
        settings["dropout"] = 0.0
    options = options_class(**settings)

    take_step = methods.step_of(method)
    losses = []
    for state.step in range(2):
        batch: Batch = Prompts(PROMPTS, one.condition(), range(len(PROMPTS)))
        if options.batch_kind() == "media":
            batch = Media(PROMPTS, batch.condition, batch.ids, one.pictures()[: len(PROMPTS)])
        with counted_calls(state):
            metrics = take_step(state, batch, reward_set([redness]), options, sampling)
        losses.append(metrics["loss"])
    return losses


def reloaded(one: Subject, family: str) -> str:
    """Whether a fresh pipeline with the export draws what the trained one does."""
    ours = one.pictures()
    with tempfile.TemporaryDirectory() as folder:
        one.model.export(Path(folder))
        fresh = subject(family)
        fresh.model.reload(Path(folder))
        difference = (fresh.pictures() - ours).abs().max().item()
    return "yes" if difference < 1e-4 else f"reloaded, it draws something else ({difference:.1e})"


def page(answers: dict[str, dict[str, str]]) -> str:
    """As Markdown."""
    columns = list(next(iter(answers.values())))
    rows = [
        f"| {family} | " + " | ".join(cells[column] for column in columns) + " |"
        for family, cells in answers.items()
    ]
    head = f"| family | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    return f"""# Methods on families

Written by `make matrix`. Each cell is two steps on a tiny random pipeline of the real classes, \
with guidance: the loss
is finite, the trained weights changed, and the export, loaded into a fresh pipeline, draws the \
same pictures. "Yes"
means that the parts fit together. [results.md](results.md) has what was learned on real pictures.

The cells run the adapters directly. `align-gen finetune` and `sample` refuse instruct-pix2pix, \
controlnet,
controlnet-xl, flux-kontext and the three wan-image rows: these need a picture beside each prompt, \
which recipes and
galleries do not carry yet.

{head}
{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="one family, to the terminal")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    answers: dict[str, dict[str, str]] = {}
    for family in [args.only] if args.only else PIPELINES:
        answers[family] = {
            f"{method}, {name}": cell(family, method, lora)
            for method in methods.METHODS
            for name, lora in TRAINED.items()
        }
        print(family, answers[family], file=sys.stderr, flush=True)
    if args.only:
        print(page(answers))
    else:
        (ROOT / "docs" / "matrix.md").write_text(page(answers))


if __name__ == "__main__":
    main()
