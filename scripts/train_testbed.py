"""Train the small models of the testbed from the arrays of build_testbed.py.

    python scripts/train_testbed.py emoji-clip     # --data build/testbed --work build/train
    python scripts/train_testbed.py emoji-heldout-clip …
    python scripts/train_testbed.py emoji-vae …    # needs nothing else
    python scripts/train_testbed.py emoji-sd …     # emoji-vae; emoji-heldout-clip to be measured
    python scripts/train_testbed.py emoji-flow …   # the same, and emoji-sd for its text encoder
    python scripts/train_testbed.py emoji-video …  # emoji-sd; emoji-heldout-clip to be measured
    python scripts/train_testbed.py prompts …      # the prompt lists

Every run is seeded by (seed, step), saves its state every few minutes and resumes from there when
started again, measures itself on held-out pictures, and writes the asset in the format of the big
models (an open_clip folder, a diffusers pipeline folder) with a card. One to two hours each on two
cores; the seconds are in the card.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from testbed.clip import train_clip
from testbed.generators import train_flow, train_sd
from testbed.prompts import write_pictures, write_prompts
from testbed.vae import train_vae
from testbed.video import train_video

TRAINERS: dict[str, Callable[..., None]] = {
    "prompts": write_prompts,
    "pictures": write_pictures,
    "emoji-clip": train_clip,
    "emoji-heldout-clip": train_clip,
    "emoji-vae": train_vae,
    "emoji-sd": train_sd,
    "emoji-flow": train_flow,
    "emoji-video": train_video,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(TRAINERS))
    parser.add_argument(
        "--data", type=Path, default=Path("build/testbed"), help="what build_testbed.py wrote"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/train"),
        help="training states; start again to go on",
    )
    parser.add_argument("--out", type=Path, default=Path("assets/models"))
    parser.add_argument("--steps", type=int, help="fewer, for a quick look")
    parser.add_argument(
        "--start", type=Path, help="emoji-sd only: go on from this pipeline folder, a new optimizer"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.start and args.name != "emoji-sd":
        parser.error("--start: only emoji-sd takes it")
    torch.set_num_threads(args.threads)
    options = {"start": args.start} if args.start else {}
    TRAINERS[args.name](args.name, args.data, args.work, args.out, args.steps, **options)


if __name__ == "__main__":
    main()
