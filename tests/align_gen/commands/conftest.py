"""A recipe that is small enough to run, and the wrong files that its mistakes name."""

from pathlib import Path

import pytest


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text("a red dog\na bird\n")
    (tmp_path / "eval.txt").write_text("an elk\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "SoundPipeline"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model_index.json").write_text('{"_class_name": ')
    (tmp_path / "mine.py").write_text(
        "def near(media, prompts, control):\n    return -(media - control).abs().mean((1, 2, "
        "3))\n\n"
        "near.required_context = ('control',)\n"
    )
    text = f"""\
model: {{path: {tiny_folder}, lora: {{rank: 2}}}}
method: {{name: prdp, images_per_prompt: 2, prompts_per_step: 1}}
prompts: {{train: {tmp_path}/train.txt, eval: {tmp_path}/eval.txt}}
rewards: {{mean_hue: {{hue: 120}}}}
eval_rewards: {{jpeg_size: 1}}
sampling: {{num_inference_steps: 2, guidance_scale: 2.0, height: 16, width: 16}}
evaluate: {{num_inference_steps: 2, seeds: [0]}}
run: {{steps: 1}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"
