"""Put hpsv2 1.2.0, the published scorer and oracle of `hps`, beside the environment.

    python scripts/get_hpsv2.py [--folder build/hpsv2]

Without its dependencies, of which two pin old versions of what stands here; clint, which it
imports, comes along. Its wheel lacks the vocabulary of its tokenizer, which open_clip ships. One
module imports a name that it never uses from turtle, which needs Tk: where there is no Tk, an empty
stand-in lies beside it.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("hpsv2==1.2.0", "clint==0.5.1", "args==0.1.0")
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/hpsv2"))
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
    complete(args.folder)
    print(f"PYTHONPATH={args.folder} python -c 'import hpsv2.img_score'")


def complete(folder: Path) -> None:
    """Give the package what its import needs and its wheel lacks."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    shutil.copy(
        Path(spec.origin).with_name(VOCABULARY), folder / "hpsv2" / "src" / "open_clip" / VOCABULARY
    )
    if importlib.util.find_spec("_tkinter") is None:
        (folder / "turtle.py").write_text("forward = None\n")


if __name__ == "__main__":
    main()
