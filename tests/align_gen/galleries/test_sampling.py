"""Galleries drawn by a model, made again by diffusers alone."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from align_gen import sample
from align_gen.galleries.gallery import Gallery

SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}


def test_a_rows_seed_makes_the_picture_again_in_diffusers(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """manual_seed(row["seed"]) in the stock pipeline gives the stored picture, to the rounding of a
    PNG (1/255).
    """
    gallery = sample(
        str(tiny_folder), ["a cat", "a dog"], out=tmp_path / "gallery", seeds=(0, 1), **SETTINGS
    )
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    assert [row["prompt"] for row in gallery.rows] == ["a cat", "a cat", "a dog", "a dog"]
    assert len({row["seed"] for row in gallery.rows}) == 4
    for index, row in enumerate(gallery.rows):
        generator = torch.Generator().manual_seed(row["seed"])
        theirs = pipeline(row["prompt"], generator=generator, output_type="pt", **SETTINGS).images[
            0
        ]
        assert (theirs - gallery.image(index)).abs().max() <= 0.51 / 255


def test_a_gallerys_rows_make_the_gallery_again(tiny_folder: Path, tmp_path: Path) -> None:
    first = sample(
        str(tiny_folder),
        [{"prompt": "a cat", "group": "pets"}],
        out=tmp_path / "one",
        seed=3,
        **SETTINGS,
    )
    rows = [{key: value for key, value in row.items() if key != "file_name"} for row in first.rows]
    again = sample(str(tiny_folder), rows, out=tmp_path / "two", seeds=(7, 8, 9), **SETTINGS)
    assert again.rows == first.rows
    assert torch.equal(again.image(0), first.image(0))


def test_seeds_do_not_depend_on_the_other_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    alone = sample(str(tiny_folder), ["a dog"], out=tmp_path / "alone", seed=0, **SETTINGS)
    among = sample(str(tiny_folder), ["a cat", "a dog"], out=tmp_path / "among", seed=0, **SETTINGS)
    assert among.rows[1]["seed"] == alone.rows[0]["seed"]
    assert (
        among.image(1) - alone.image(0)
    ).abs().max() <= 1.01 / 255  # another batch, another rounding
    assert Gallery.load(tmp_path / "among").rows == among.rows
