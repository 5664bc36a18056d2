"""The bundled emoji-video, trained on real animations: emoji-sd's parts by links, and motion that
was learned.
"""

from pathlib import Path

import pytest
import torch
from torch import Generator

from align_gen import Recipe, bundled, pipelines
from align_gen.pipelines import sample
from align_gen.training.dry_run import estimate, outline

pytestmark = pytest.mark.slow

FOLDER = Path(bundled.model_path("emoji-video"))


def test_all_but_the_motion_is_emoji_sds_own() -> None:
    """Links inside of the repository; a wheel has the files themselves."""
    shared = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    for part in shared:
        own, base = FOLDER / part, Path(bundled.model_path("emoji-sd")) / part
        files = sorted(path.name for path in base.iterdir())
        assert files == sorted(path.name for path in own.iterdir()) and files
        assert all((own / name).read_bytes() == (base / name).read_bytes() for name in files)


def test_neighbouring_frames_are_of_one_video_and_move() -> None:
    """Real animations change by 0.040 from frame to frame; these change by .3 to 2 times that, and
    two videos of one prompt are much farther apart than the frames of one.
    """
    model = pipelines.load(str(FOLDER))
    condition = model.encode_prompts(["a dog"] * 3)
    videos = sample(
        model,
        condition,
        num_inference_steps=10,
        guidance_scale=3.0,
        eta=0.0,
        generator=Generator().manual_seed(0),
    )
    assert videos.shape == (3, 8, 3, 64, 64)
    change = (videos[:, 1:] - videos[:, :-1]).abs().mean().item()
    between = (
        torch.stack([(videos[i] - videos[j]).abs().mean() for i, j in ((0, 1), (0, 2), (1, 2))])
        .mean()
        .item()
    )
    assert 0.3 * 0.040 < change < 2 * 0.040
    assert between > 1.5 * change


def test_its_memory_is_known_without_its_weights() -> None:
    """8 frames of 64 x 64: the same estimate as for pictures, from shapes alone; the motion is a
    component of it.
    """
    small = [
        "model.path=emoji-video",
        "optim.micro_batch=2",
        "evaluate.batch_size=2",
        "model.lora={rank: 4}",
    ]
    recipe = Recipe.load("emoji-sd-prdp", small)
    model = outline(recipe)
    memory = estimate(model, recipe)
    weights = sum(p.numel() for part in model.components().values() for p in part.parameters())
    assert weights * 4 <= memory.weights < weights * 4.1 and memory.learning > memory.sampling > 0
    assert set(model.trainable) == {"unet"} and any(
        "motion_modules" in name for name, _ in model.trainable["unet"].named_parameters()
    )
