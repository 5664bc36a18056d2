"""Write docs/results/methods.md and its pictures from the runs that reproduce_methods.py made.

python scripts/methods_page.py [--runs runs/methods] [--out docs/results/methods.md]
"""

import argparse
from pathlib import Path

import matplotlib


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods.md"))
    args = parser.parse_args()
    # Before pyplot is imported, which would choose a backend with windows.
    matplotlib.use("Agg")
    from figures import methods_page

    methods_page.write(args.runs, args.out)


if __name__ == "__main__":
    main()
