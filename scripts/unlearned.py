"""Two galleries by checks without any network: number of colours, and hues that prompts ask for.

python scripts/unlearned.py runs/demo/before runs/demo/samples/final
"""

import argparse
from pathlib import Path

from figures.colours import line, unlearned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a gallery")
    parser.add_argument("after", type=Path, help="a gallery of the same prompts and seeds")
    args = parser.parse_args()
    print("| after | colours | change | hue, before → after |\n|---|---|---|---|")
    print(line(str(args.after), unlearned(args.before, args.after)))


if __name__ == "__main__":
    main()
