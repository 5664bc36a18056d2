"""Prove that the wheel stands alone: build it, install it elsewhere, run the demo there.

    python scripts/check_wheel.py                          # a real installation, torch and all
    python scripts/check_wheel.py --packages-from .venv    # an environment's libraries; faster
    python scripts/check_wheel.py --quick                  # the command line only, no demo

The interpreter that runs this needs hatchling (extra "dev").
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHERE = (
    "import align_gen, align_gen.pipelines; "
    "print(align_gen.__file__); print(align_gen.pipelines.__file__)"
)


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed; its errors go to the terminal at once."""
    print("$", shlex.join(map(str, command)), flush=True)
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, written into ``folder``."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def site_packages(python: Path) -> Path:
    """Where an environment keeps its libraries."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(python, "-c", code, cwd=python.parent))


def install(wheel: Path, environment: Path, torch: list[str], packages_from: Path | None) -> Path:
    """A new environment with the wheel in it; its bin folder."""
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    pip: list[str | Path] = [programs / "python", "-m", "pip", "install", "--quiet"]
    if packages_from is None:
        run(*pip, *torch, cwd=environment)
        run(*pip, wheel, cwd=environment)
    else:
        # A path line adds the folder after the environment's own and runs no .pth in it, so that an
        # editable installation of this checkout over there stays unseen.
        libraries = site_packages(packages_from / "bin" / "python")
        (site_packages(programs / "python") / "libraries.pth").write_text(f"{libraries}\n")
        run(*pip, "--no-deps", wheel, cwd=environment)
    return programs


def clean_environment(home: Path) -> dict[str, str]:
    """No way back to the checkout, no network, no model from an earlier download."""
    variables = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return variables | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def check(programs: Path, work: Path, arguments: list[str], quick: bool) -> None:
    """Run the installed program from ``work``.

    Raises:
        AssertionError: another copy runs, or too little is written.
    """
    env = clean_environment(work / "hub")
    for file in run(programs / "python", "-c", WHERE, cwd=work, env=env).splitlines():
        assert Path(file).is_relative_to(programs.parent), (
            f"imported from {file}, not from {programs.parent}"
        )
    if quick:
        assert "finetune" in run(programs / "align-gen", "--help", cwd=work, env=env)
        assert "emoji-sd" in run(programs / "align-gen", "list", "assets", cwd=work, env=env)
        return
    out = work / "demo"
    run(programs / "align-gen", "demo", "--out", out, *arguments, cwd=work, env=env)
    summary = json.loads((out / "summary.json").read_text())
    report = (out / "report.html").stat().st_size
    assert report > 10_000, f"report.html has {report} bytes"
    print(json.dumps(summary, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="align-gen --help and list assets instead of the demo"
    )
    parser.add_argument(
        "--packages-from", type=Path, metavar="VENV", help="take the libraries of this environment"
    )
    parser.add_argument(
        "--torch",
        default="torch torchvision",
        help="what pip installs as torch (default: %(default)s)",
    )
    parser.add_argument(
        "demo", nargs="*", metavar="-- DEMO_OPTION", help="further options of align-gen demo"
    )
    arguments = parser.parse_args()
    packages_from = arguments.packages_from.resolve() if arguments.packages_from else None
    with tempfile.TemporaryDirectory(prefix="align-gen-wheel-") as folder:
        for name in ("dist", "work"):
            (Path(folder) / name).mkdir()
        wheel = build_wheel(Path(folder) / "dist")
        programs = install(wheel, Path(folder) / "env", shlex.split(arguments.torch), packages_from)
        check(programs, Path(folder) / "work", arguments.demo, arguments.quick)
    print(f"passed: {wheel.name} runs on its own")


if __name__ == "__main__":
    main()
