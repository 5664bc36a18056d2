"""Write docs/status.md: what was proven on what, each claim with the test that proves it.

    python scripts/write_status.py [--check]

A claim without its test is a failure here; ``--check`` compares with the committed page and changes nothing.
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "status.md"
LEVELS = ("real weights", "small real weights", "tiny random", "not run")

# what -> (level, what was checked, the tests).
FAMILIES: dict[str, tuple[str, str, list[str]]] = {
    "StableDiffusionPipeline (SD 1.x, 2.x)": (
        "small real weights",
        "η = 0 equals the diffusers pipeline, replay, LoRA round trip, PRDP end to end: on emoji-sd (ε); "
        "every spacing, v and x0 on tiny random ones",
        [
            "tests/pipelines/test_emoji_sd.py",
            "tests/align_gen/test_check.py",
            "tests/pipelines/test_stable_diffusion.py",
            "tests/pipelines/test_sampling.py",
            "tests/align_gen/test_engine.py",
        ],
    ),
    "SDXL, SD 3.x (with and without T5), FLUX.1 (dev, schnell), InstructPix2Pix, ControlNet (SD, SDXL)": (
        "tiny random",
        "`align-gen check`: η = 0 equals the diffusers pipeline, replay, guidance, LoRA round trip, gradients; a wrong "
        "constant in an adapter is caught",
        ["tests/pipelines/test_families.py", "tests/align_gen/test_check.py"],
    ),
    "Wan 2.1 and 2.2 (two networks), AnimateDiff, ModelScope": (
        "tiny random",
        "the same laws on videos; galleries and video rewards are not there yet",
        ["tests/pipelines/test_families.py", "tests/align_gen/test_check.py"],
    ),
    "toy-diffusion, toy-flow (Gaussian mixtures)": (
        "tiny random",
        "exact x0, velocity, likelihood; PRDP reaches its closed form",
        ["tests/pipelines/test_toy.py", "tests/align_gen/test_prdp.py"],
    ),
}
REWARDS: dict[str, tuple[str, str, list[str]]] = {
    "clip (open_clip folders)": (
        "small real weights",
        "equals open_clip's own preprocessing, goal-baseline golden values, differentiable",
        ["tests/reward_heads/test_clip.py"],
    ),
    "clip (ViT-H-14 and other published weights)": ("not run", "the same code; no published weights were loaded", []),
    "jpeg_size, mean_hue": ("real weights", "no weights", ["tests/reward_heads/test_pixels.py"]),
}
METHODS: dict[str, tuple[str, str, list[str]]] = {
    "prdp": (
        "small real weights",
        "golden values, two-pass gradient equals autograd, closed forms on toy, the demo",
        ["tests/align_gen/test_losses.py", "tests/align_gen/test_prdp.py"],
    ),
}


def count_tests(file: str) -> int:
    """Test functions in a file; 0 when it is missing."""
    path = ROOT / file
    if not path.is_file():
        return 0
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)


def table(title: str, rows: dict[str, tuple[str, str, list[str]]]) -> list[str]:
    lines = [f"## {title}", "", "| what | proven on | how | tests |", "|---|---|---|---|"]
    for what, (level, how, files) in rows.items():
        if level not in LEVELS:
            raise SystemExit(f"{what}: no level {level!r}; have {LEVELS}")
        missing = [file for file in files if not count_tests(file)]
        if missing or (not files and level != "not run"):
            raise SystemExit(f"{what}: claimed without a test: {missing}")
        links = ", ".join(f"[{Path(file).stem}](../{file}) ({count_tests(file)})" for file in files) or "none"
        lines.append(f"| {what} | **{level}** | {how} | {links} |")
    return [*lines, ""]


def page() -> str:
    head = [
        "# What was proven, and on what",
        "",
        "Written by `python scripts/write_status.py`; a test keeps it current. Nothing is claimed beyond it.",
        "",
        "- **real weights**: the published weights, or no weights are needed",
        "- **small real weights**: the bundled emoji models, trained on real pictures",
        "- **tiny random**: the real classes, built small with random weights",
        "- **not run**: written, and never run on what it is for",
        "",
        "Nothing here was run on a GPU or on several machines.",
        "",
    ]
    sections = [*table("Model families", FAMILIES), *table("Rewards", REWARDS), *table("Methods", METHODS)]
    return "\n".join(head + sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not args.check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/status.md is out of date: python scripts/write_status.py")


if __name__ == "__main__":
    main()
