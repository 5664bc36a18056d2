"""Recompute a demo's three figures from its PNGs, with open_clip and nothing of align_gen.

    python scripts/recheck_demo.py runs/demo [--models assets/models]

Reads the pictures and prompts of ``before/`` and ``samples/final/``, applies open_clip's own
preprocessing, and prints reward, heldout and alignment before and after beside what
``summary.json`` claims; exits 1 when they differ by more than 1e-4.
"""

import argparse
import json
from pathlib import Path

import open_clip
import torch
from PIL import Image

GOAL = "a glossy 3d emoji"
BASELINE = "a flat icon"
ALPHA = 1.0


def embed(
    folder: Path, model_folder: Path
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit embeddings: of a gallery's pictures and prompts (N, D), of goal and baseline (D,)."""
    name = f"local-dir:{model_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    pictures = torch.stack([preprocess(Image.open(folder / row["file_name"])) for row in rows])
    with torch.no_grad():
        images = torch.cat(
            [model.encode_image(part, normalize=True) for part in pictures.split(128)]
        )
        prompts = model.encode_text(tokenizer([row["prompt"] for row in rows]), normalize=True)
        goal, baseline = model.encode_text(tokenizer([GOAL, BASELINE]), normalize=True)
    return images, prompts, goal, baseline


def goal_baseline(images: torch.Tensor, goal: torch.Tensor, baseline: torch.Tensor) -> float:
    """Mean of 1 - |(s - g) P|^2 / 2, with P = alpha d d^T / |d|^2 + (1 - alpha) I written out."""
    d = goal - baseline
    projection = ALPHA * torch.outer(d, d) / d.dot(d) + (1 - ALPHA) * torch.eye(len(d))
    return (1 - 0.5 * ((images - goal) @ projection).square().sum(1)).mean().item()


def figures(folder: Path, models: Path) -> dict[str, float]:
    images, _, goal, baseline = embed(folder, models / "emoji-clip")
    reward = goal_baseline(images, goal, baseline)
    images, prompts, goal, baseline = embed(folder, models / "emoji-heldout-clip")
    alignment = (images * prompts).sum(1).mean().item()
    return {
        "reward": reward,
        "heldout": goal_baseline(images, goal, baseline),
        "alignment": alignment,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--models", type=Path, default=Path(__file__).parent.parent / "assets" / "models"
    )
    args = parser.parse_args()
    claimed = json.loads((args.run / "summary.json").read_text())
    worst = 0.0
    for when, folder in (
        ("before", args.run / "before"),
        ("after", args.run / "samples" / "final"),
    ):
        for name, value in figures(folder, args.models).items():
            worst = max(worst, abs(value - claimed[name][when]))
            print(f"{name:10} {when:7} recomputed {value:.6f}  claimed {claimed[name][when]:.6f}")
    print(f"largest difference {worst:.2e}")
    raise SystemExit(worst > 1e-4)


if __name__ == "__main__":
    main()
