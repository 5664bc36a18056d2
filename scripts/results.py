"""Set demo runs side by side, the first beside the trivial rivals: a page and a picture.

    python scripts/results.py runs/demo [runs/demo-1 … runs/placebo] [--out PAGE.md | --docs]

The page goes into the first run's folder as results.md, with demo.png beside it; ``--docs`` writes
docs/results.md and docs/demo.png instead. Rivals draw the same held-out prompts with the same seeds
from the untouched model: with the style's words in the prompt, and as the best of N by the
optimised reward, N chosen so that the gallery costs as many denoiser calls as the training and its
gallery did. All are scored by the same rewards against the *bare* prompts. The picture shows pairs
drawn at random, failures included.
"""

import argparse
from pathlib import Path

from figures.demo_page import page, picture

DOCS = Path(__file__).resolve().parent.parent / "docs" / "results.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="finished runs of align-gen demo; rivals meet the first"
    )
    parser.add_argument(
        "--flow", type=Path, nargs="*", default=[], help="runs of align-gen demo --model emoji-flow"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="the page; results.md of the first run without it")
    where.add_argument(
        "--docs", action="store_true", help="write docs/results.md and docs/demo.png"
    )
    args = parser.parse_args()
    first = args.runs[0]
    out: Path = DOCS if args.docs else args.out or first / "results.md"
    picture(first).save(out.parent / "demo.png", optimize=True)
    out.write_text(page(args.runs, args.flow))
    print(out.read_text())


if __name__ == "__main__":
    main()
