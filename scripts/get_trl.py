"""Put TRL 0.23.1, the last with a DDPOTrainer, beside the environment: a rival of `bench`.

    python scripts/get_trl.py [--folder build/trl]

Without its dependencies, which would change the environment's own; what its import needs beyond
them comes along.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = ("trl==0.23.1", "pandas", "python-dateutil", "six", "tzdata")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/trl"))
    args = parser.parse_args()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--upgrade",
        "--target",
        str(args.folder),
    ]
    subprocess.run([*pip, *PACKAGES], check=True)
    print(f"PYTHONPATH={args.folder} align-gen bench --against trl")


if __name__ == "__main__":
    main()
