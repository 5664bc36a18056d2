"""Run every method on the emoji models at equal denoiser calls, for docs/results/methods.md.

    python scripts/reproduce_methods.py [--arms prdp ddpo …] [--seeds 0 1 2] [--calls 82000]
        [--runs runs/methods]

Arms learn from the demo's prompts, reward, LoRA and sampler, each as long as its steps cost so many
rows forward. A run that is there is not made again, and an interrupted one resumes. Offline arms
learn from pictures of the untouched model, drawn and scored once, whose calls count. The distance
from the reference is measured alike for all: the mean log ratio of trajectories that the trained
model draws on held-out prompts, in nats. scripts/methods_page.py makes the page's tables of what is
there. Videos have a tenth of the calls.
"""

import argparse
from pathlib import Path

from figures.arm_runs import learn, learn_rival, prepare_data
from figures.arms import ARMS, RIVALS, model_of

from align_gen.progress import ProgressBar


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=[*ARMS, *RIVALS], choices=[*ARMS, *RIVALS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calls", type=int, default=82_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    args = parser.parse_args()
    with ProgressBar() as progress:
        for arm in (arm for arm in args.arms if arm in ARMS):
            if "data" in ARMS[arm]:
                prepare_data(arm, args.runs / f"drawn-{model_of(arm)}", progress)
            for seed in args.seeds:
                learn(arm, seed, args.calls, args.runs, progress)
        for name in (arm for arm in args.arms if arm in RIVALS):
            learn_rival(name, args.calls, args.runs, progress)


if __name__ == "__main__":
    main()
