"""Write docs/status.md and the table in README.md: what was proven on what, and by which test.

    python scripts/write_status.py [--check]

A claim without its test is a failure here; ``--check`` compares with the committed page and changes
nothing.
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "status.md"
README = ROOT / "README.md"
MARKS = ("<!-- families: written by scripts/write_status.py -->", "<!-- end of families -->")
LEVELS = {
    "real weights": "the published weights, or no weights are needed",
    "small real weights": "the bundled emoji models, trained on real pictures",
    "real-size shapes": "the published configuration, without weights: every tensor's shape, no "
    "values",
    "tiny random": "the real classes, built small with random weights",
    "not run": "written, and never run on what it is for",
}

LAWS = [
    "tests/pipelines/test_families.py",
    "tests/align_gen/check/test_laws.py",
    "tests/pipelines/test_skeleton.py",
]

# what -> (level, what was checked, the tests).
FAMILIES: dict[str, tuple[str, str, list[str]]] = {
    "Stable Diffusion 1.x, 2.x": (
        "small real weights",
        "the bundled emoji-sd (ε), trained on real pictures: PRDP end to end, `align-gen "
        "check`; v and x0, and every spacing of time steps, on tiny random models; real-size "
        "shapes",
        [
            "tests/pipelines/test_emoji_sd.py",
            *LAWS,
            "tests/pipelines/families/test_stable_diffusion.py",
            "tests/pipelines/test_exports.py",
            "tests/pipelines/test_sampling.py",
            "tests/align_gen/training/test_engine.py",
        ],
    ),
    "Stable Diffusion 3, 3.5 (with and without T5)": (
        "small real weights",
        "the bundled emoji-flow, trained on real pictures: PRDP end to end, `align-gen check`; "
        "tiny random models with T5 and with dynamic shift; real-size shapes",
        LAWS,
    ),
    "SDXL, FLUX.1 (dev, schnell), PixArt-Sigma, Sana, Lumina 2, Qwen-Image, Z-Image": (
        "real-size shapes",
        "texts, network, gradient and picture at the published size; `align-gen check` on tiny "
        "random models: deterministic samples match diffusers, gradients are finite, an "
        "exported LoRA loads in plain diffusers (PixArt-Sigma's through align_gen), and a "
        "deliberately wrong constant is detected",
        LAWS,
    ),
    "with a picture beside each prompt: ControlNet (SD, SDXL), InstructPix2Pix, FLUX.1 "
    "Kontext, Wan image to video": (
        "real-size shapes",
        "the adapters alone, as in the row above; `finetune` and `sample` refuse these "
        "checkpoints, because recipes and galleries carry no such pictures yet",
        LAWS,
    ),
    "AnimateDiff": (
        "small real weights",
        "the bundled emoji-video, trained on real animations: `align-gen check`; a whole run "
        "on a tiny random model, scored by the mean over frames; real-size shapes",
        ["tests/pipelines/test_emoji_video.py", *LAWS, "tests/align_gen/training/test_export.py"],
    ),
    "Wan 2.1 and 2.2 (text to video), HunyuanVideo, CogVideoX (1.0, 1.5), LTX-Video, ModelScope": (
        "real-size shapes",
        "as for SDXL, on videos",
        [*LAWS, "tests/pipelines/families/test_video.py"],
    ),
    "Gaussian mixtures, as diffusion and as flow": (
        "real weights",
        "exact x0, velocity, likelihood; PRDP reaches its closed form",
        ["tests/pipelines/families/test_toy.py", "tests/align_gen/methods/test_prdp.py"],
    ),
    "published checkpoints of any of these": (
        "not run",
        "the same code runs them, but no published weights were loaded and none were trained",
        [],
    ),
}
HEADS = "tests/reward_heads/heads"
REWARDS: dict[str, tuple[str, str, list[str]]] = {
    "clip (open_clip folders)": (
        "small real weights",
        "equals open_clip's own preprocessing, goal-baseline golden values, differentiable",
        [f"{HEADS}/test_clip.py"],
    ),
    "hps (v2.0, v2.1)": (
        "real-size shapes",
        "pixels and scores equal hpsv2 1.2.0's to 1e-5 on tiny random weights; names and "
        "shapes of the ViT-H-14; published weights not run",
        [f"{HEADS}/test_hps.py", "tests/align_gen/galleries/test_hpdv2.py"],
    ),
    "pick_score, siglip, aesthetic, image_reward": (
        "tiny random",
        "equal the reference formula on the real architecture, built small; published weights "
        "not run",
        [
            f"{HEADS}/test_pick_score.py",
            f"{HEADS}/test_siglip.py",
            f"{HEADS}/test_aesthetic.py",
            f"{HEADS}/test_image_reward.py",
        ],
    ),
    "clip (ViT-H-14 and other published weights)": (
        "not run",
        "the same code; no published weights were loaded",
        [],
    ),
    "ocr": (
        "real weights",
        "reads rendered text with the models in rapidocr's wheel",
        [f"{HEADS}/test_ocr.py"],
    ),
    "jpeg_size, mean_hue, sharpness, colour": (
        "real weights",
        "no weights; checked by hand arithmetic and invariants",
        [f"{HEADS}/test_pixels.py", f"{HEADS}/test_sharpness.py", f"{HEADS}/test_colour.py"],
    ),
    "views, ensemble; rules, calibration, gates": (
        "real weights",
        "no weights of their own; golden values and invariants; a run that optimises a combination",
        [
            "tests/reward_heads/wrappers/test_views.py",
            "tests/reward_heads/wrappers/test_ensemble.py",
            "tests/reward_heads/test_combine.py",
            "tests/align_gen/training/test_calibration.py",
        ],
    ),
    "emoji-hps, by `train-reward`": (
        "small real weights",
        "held-out accuracy in its card; pairs, losses and both modes on tiny ones",
        [
            "tests/align_gen/reward_training/test_train.py",
            "tests/align_gen/galleries/test_pairs.py",
            "tests/align_gen/losses/test_preference.py",
        ],
    ),
    "trained, segments, video_reward": (
        "tiny random",
        "golden values of SegVR and TAR; what each dimension may see; no published video "
        "reward was loaded",
        [
            f"{HEADS}/test_trained.py",
            f"{HEADS}/test_video_reward.py",
            "tests/reward_heads/test_frames.py",
            "tests/reward_heads/wrappers/test_segments.py",
        ],
    ),
}
METHODS: dict[str, tuple[str, str, list[str]]] = {
    "ddpo": (
        "small real weights",
        "the gradient at θ_old equals autograd, one-sided clip, advantages by hand; stopped by "
        "the guard on emoji-sd; statistics over steps resume to the last bit",
        [
            "tests/align_gen/losses/test_losses.py",
            "tests/align_gen/methods/test_ddpo.py",
            "tests/align_gen/losses/test_reward_history.py",
            "tests/align_gen/training/test_hacking.py",
        ],
    ),
    "prdp": (
        "small real weights",
        "golden values, two-pass gradient equals autograd, closed forms on toy, the demo, "
        "three seeds beside the other methods ([results](results/methods.md))",
        ["tests/align_gen/losses/test_losses.py", "tests/align_gen/methods/test_prdp.py"],
    ),
    "grpo, nft": (
        "small real weights",
        "the gradient at θ_old equals autograd, closed forms on toy, runs that resume to the "
        "last bit; a run of each on emoji-sd ([results](results/methods.md))",
        [
            "tests/align_gen/methods/test_grpo.py",
            "tests/align_gen/methods/test_nft.py",
            "tests/align_gen/methods/test_laws_of_methods.py",
        ],
    ),
    "rwr, raft, sft": (
        "small real weights",
        "gradients equal autograd of the loss written out, closed forms on toy, runs that "
        "resume to the last bit; on emoji-sd rwr and raft fell apart, sft learned little "
        "([results](results/methods.md))",
        [
            "tests/align_gen/methods/test_rwr.py",
            "tests/align_gen/methods/test_raft.py",
            "tests/align_gen/methods/test_sft.py",
            "tests/align_gen/methods/test_laws_of_methods.py",
            "tests/align_gen/training/test_data.py",
        ],
    ),
    "dpo (Diffusion-DPO, Flow-DPO; given pairs and online)": (
        "small real weights",
        "ln 2 and antisymmetric gradients at the reference, its own fixed point on toy; runs "
        "on emoji-sd, emoji-flow and emoji-video ([results](results/methods.md))",
        ["tests/align_gen/methods/test_dpo.py", "tests/align_gen/training/test_data.py"],
    ),
}


RUNNING: dict[str, tuple[str, str, list[str]]] = {
    "resume after kills, signals, a full disk, damaged checkpoints": (
        "small real weights",
        "real processes and signals, on tiny models in the tests and on emoji-sd by "
        "`scripts/kill_trials.py`: the resumed run equals the uninterrupted one to the last bit",
        [
            "tests/align_gen/training/test_checkpoint.py",
            "tests/align_gen/training/test_signals.py",
            "tests/align_gen/training/test_full_disk.py",
            "tests/align_gen/training/test_claim.py",
            "tests/align_gen/training/test_engine.py",
        ],
    ),
    "several processes (gloo on one CPU machine)": (
        "tiny random",
        "two processes compute the same as one, to 1e-6; when one dies, the others end",
        ["tests/align_gen/training/test_processes.py"],
    ),
    "one GPU": (
        "small real weights",
        "emoji-sd on an H200: `check` passed in bf16 and fp16 with each of torch's attention "
        "kernels; pictures, scores and the steps of NFT and DPO equal the CPU's; step times; "
        "three models at full size. `check` in fp32, resuming and the end of the demo failed "
        "there, were fixed, and were not run there again",
        ["tests/align_gen/test_cuda.py"],
    ),
    "several GPUs (NCCL), several machines": (
        "not run",
        "the same code; launched as docs/running.md says",
        [],
    ),
    "`memory.shard` (FSDP2)": (
        "tiny random",
        "two gloo processes: metrics, weights, export as one process's, of a LoRA and of all "
        "weights; not run on GPUs",
        ["tests/align_gen/training/test_processes.py"],
    ),
    "DeepSpeed": (
        "not run",
        "refused in one line; `memory.shard` splits weights as its ZeRO-3 does",
        [],
    ),
}


def count_tests(file: str) -> int:
    """Test functions in a file; 0 when it is missing."""
    path = ROOT / file
    if not path.is_file():
        return 0
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return sum(
        isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes
    )


def table(title: str, rows: dict[str, tuple[str, str, list[str]]]) -> list[str]:
    """Lines of Markdown about some claims.

    Raises:
        SystemExit: a claim has no test, or a level that is not known.
    """
    lines = [f"## {title}", "", "| what | proven on | how | tests |", "|---|---|---|---|"]
    for what, (level, how, files) in rows.items():
        if level not in LEVELS:
            raise SystemExit(f"{what}: no level {level!r}; have {list(LEVELS)}")
        missing = [file for file in files if not count_tests(file)]
        if missing or (not files and level != "not run"):
            raise SystemExit(f"{what}: claimed without a test: {missing}")
        links = [f"[{Path(file).stem}](../{file}) ({count_tests(file)})" for file in files]
        lines.append(f"| {what} | **{level}** | {how} | {', '.join(links) or 'none'} |")
    return [*lines, ""]


def readme() -> str:
    """The README with its table of families as it should be."""
    text = README.read_text(encoding="utf-8")
    rows = [f"| {what} | **{level}**: {how} |" for what, (level, how, _) in FAMILIES.items()]
    lines = ["| family | proven on |", "|---|---|", *rows]
    start, end = (text.index(mark) for mark in MARKS)
    return text[: start + len(MARKS[0])] + "\n" + "\n".join(lines) + "\n" + text[end:]


def page() -> str:
    """The whole page as Markdown."""
    head = [
        "# What was proven, and on what",
        "",
        "Written by `python scripts/write_status.py`; a test keeps it current. "
        "Nothing is claimed beyond it.",
        "",
        *(f"- **{level}**: {meaning}" for level, meaning in LEVELS.items()),
        "",
        "On a GPU, only what the last table and [gpu.md](gpu.md) name was run. "
        "Nothing was run on several machines.",
        "",
    ]
    sections = [
        *table("Model families", FAMILIES),
        *table("Rewards", REWARDS),
        *table("Methods", METHODS),
        *table("Running", RUNNING),
    ]
    return "\n".join(head + sections)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for file, wanted in ((PAGE, page()), (README, readme())):
        if not args.check:
            file.write_text(wanted, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != wanted:
            sys.exit(f"{file.relative_to(ROOT)} is out of date: python scripts/write_status.py")


if __name__ == "__main__":
    main()
