"""What is taken away from a run: weights that load in a fresh pipeline."""

from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from align_gen import Recipe, finetune, pipelines
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.table import ScoresTable
from align_gen.training.engine import Run
from align_gen.training.export import model_card
from tests.kits.runs import (
    Stopped,
    picture_digests,
    same,
    stop_at,
    weights,
)
from tests.tiny import PIPELINES

pytestmark = pytest.mark.slow

# --- a LoRA ---------------------------------------------------------------------------------------


def test_the_export_in_a_fresh_pipeline_makes_the_final_pictures(
    finished: Run, tiny_folder: Path
) -> None:
    """diffusers alone: load_lora_weights, DDIM, a generator with the row's seed. To 1e-5 of our own
    sample, and within half a level of the PNG.
    """
    from diffusers import StableDiffusionPipeline

    fresh = StableDiffusionPipeline.from_pretrained(tiny_folder)
    fresh.set_progress_bar_config(disable=True)
    gallery = Gallery.load(finished.folder / "samples/final")

    def make() -> Tensor:
        made = [
            fresh(
                row["prompt"],
                num_inference_steps=2,
                guidance_scale=2.0,
                eta=0.0,
                height=16,
                width=16,
                generator=torch.Generator().manual_seed(row["seed"]),
                output_type="pt",
            ).images
            for row in gallery.rows
        ]
        return torch.cat(made)

    untrained = make()
    fresh.load_lora_weights(str(finished.folder / "export"))
    tuned, kept = make(), torch.stack([gallery.image(i) for i in range(len(gallery))])
    assert (tuned - kept).abs().max() <= 0.5 / 255 + 1e-5
    assert (untrained - kept).abs().max() > 1 / 255

    model = pipelines.load(str(tiny_folder))
    model.reload(finished.folder / "export")
    condition = model.encode_prompts([row["prompt"] for row in gallery.rows], height=16, width=16)
    generators = [torch.Generator().manual_seed(row["seed"]) for row in gallery.rows]
    ours = pipelines.sample(
        model, condition, num_inference_steps=2, guidance_scale=2.0, generator=generators
    )
    torch.testing.assert_close(ours, tuned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("average", [0.5, None], ids=["averaged", "raw"])
def test_export_and_final_pictures_use_the_average_where_there_is_one(
    finished: Run, recipe: Recipe, tmp_path: Path, average: float | None
) -> None:
    """Every exported matrix stands in the checkpoint under "ema." with an average, under "policy."
    without.
    """
    run = finished if average else finetune(recipe.replace(optim={"ema": None}), tmp_path)
    kept = weights(run.folder)
    (file,) = (run.folder / "export").glob("*.safetensors")
    exported = load_file(file)
    names = {"ema." if average else "policy."}
    assert {key.split(".")[0] + "." for key in kept} == {"policy.", *names}
    mine = [value for key, value in kept.items() if key.startswith(tuple(names))]
    assert len(exported) == len(mine) > 0
    assert all(
        any(a.shape == b.shape and torch.equal(a, b) for b in exported.values()) for a in mine
    )
    if average:
        raw = [value for key, value in kept.items() if key.startswith("policy.")]
        assert not any(torch.equal(a, b) for a, b in zip(raw, mine, strict=True) if bool(a.any()))


def test_an_export_is_gone_on_from(finished: Run, recipe: Recipe, tmp_path: Path) -> None:
    """model.adapter: the earlier LoRA is where training starts and what it is held to: the
    galleries join.
    """
    more = recipe.replace(model={"adapter": str(finished.folder / "export")}, run={"steps": 1})
    run = finetune(more, tmp_path)
    assert picture_digests(run.folder / "before") == picture_digests(
        finished.folder / "samples/final"
    )


# --- all weights, and videos ----------------------------------------------------------------------


def test_full_fine_tuning(recipe: Recipe, tiny_folder: Path, tmp_path: Path) -> None:
    """Every weight of the UNet, against a frozen copy; resumed to the last bit; the export is a
    UNet that reloads.
    """
    full = recipe.replace(
        model={"lora": None}, optim={"lr": 1e-4}, evaluate={"every": 0}, run={"steps": 2}
    )
    whole = finetune(full, tmp_path / "whole")
    with pytest.raises(Stopped):
        finetune(full, tmp_path / "run", progress=stop_at(2))
    resumed = finetune(full, tmp_path / "run")
    assert same(weights(resumed.folder, 2), weights(whole.folder, 2))
    assert picture_digests(resumed.folder) == picture_digests(whole.folder)
    before, after = (
        Gallery.load(whole.folder / name).image(0) for name in ("before", "samples/final")
    )
    assert not torch.equal(before, after)

    model = pipelines.load(str(tiny_folder))
    model.reload(whole.folder / "export")
    kept = weights(whole.folder, 2)
    state = model.pipeline.unet.state_dict()
    assert state and all(
        torch.equal(kept[f"ema.unet.{name}"], value) for name, value in state.items()
    )


def test_a_video_model_runs_from_galleries_to_export(recipe: Recipe, tmp_path: Path) -> None:
    """AnimateDiff, three frames: before and after are videos of the scores' order, and the export
    loads.
    """
    options = {"sampling": {"num_frames": 3}, "evaluate": {"every": 0}, "run": {"steps": 2}}
    run = finetune(recipe.replace(**options), tmp_path / "run", model=PIPELINES["animatediff"]())
    for folder in ("before", "samples/final"):
        gallery = Gallery.load(run.folder / folder)
        assert {Path(row["file_name"]).suffix for row in gallery.rows} == {".mp4"}
        assert gallery.media(0).shape == (3, 3, 16, 16)
        scores = ScoresTable.load(run.folder / folder / "scores.parquet")
        assert scores.errors == [None] * len(gallery) and all(scores.heads["mean_hue"])
    assert [line["step"] for line in run.metrics] == [0, 1, 2]
    again = pipelines.load(PIPELINES["animatediff"]())
    again.reload(run.folder / "export")


# --- the model card -------------------------------------------------------------------------------


def card_of(path: str, prompt: str = "an elk", prompts: int = 2, reward: str = "hue") -> str:
    """The card of a run whose one reward rose by 1 on so many prompts."""
    data = {
        "model": {"path": path},
        "method": {"name": "prdp"},
        "prompts": {"train": "/home/me/train.txt", "eval": "emoji-heldout"},
        "rewards": {reward: {"name": "mean_hue", "hue": 240}},
        "eval_rewards": {"jpeg_size": 1},
    }
    rows = [{"prompt": prompt if n == 0 else f"p{n}", "seed": 0} for n in range(prompts)]
    scores: list[list[float | None]] = [[float(n + by) for n in range(prompts)] for by in (0, 1)]
    before, after = (ScoresTable(rows, {reward: s}, [None] * prompts, {}, {}) for s in scores)
    return model_card(Recipe.parse(data), before, after)


EVIL = 'm/x: #"\nlicense: mit\n---\n# Injected\n```\n<script>alert(1)</script> [a](b) ![c](d)'


def test_a_card_is_one_header_one_heading_and_two_blocks_of_code() -> None:
    """By the hub's own reader and CommonMark's, with evil in every text that a recipe has."""
    from huggingface_hub import ModelCard
    from markdown_it import MarkdownIt

    for path, prompt, reward in product(("owner/base", EVIL), ("an elk", EVIL), ("hue", EVIL)):
        card = card_of(path, prompt, reward=reward)
        header = ModelCard(card).data.to_dict()
        known = {"library_name": "diffusers", "tags": ["prdp", "lora", "align_gen"]}
        assert header == known | ({} if path == EVIL else {"base_model": path})
        body = ModelCard(card).text
        parts = MarkdownIt().enable("table").parse(body)
        assert [part.tag for part in parts if part.type == "heading_open"] == ["h1"]
        fences = [part for part in parts if part.type == "fence"]
        assert [fence.info for fence in fences] == ["python", "yaml"]
        assert sum(part.type == "tr_open" for part in parts) == 2
        inline = [child.type for part in parts for child in part.children or []]
        assert not {"link_open", "image", "html_inline"} & set(inline)
        assert not any(part.type == "html_block" for part in parts)

        # What is shown is what was meant.
        compile(fences[0].content, "card", "exec")
        recipe = yaml.safe_load(fences[1].content)
        assert recipe["prompts"]["train"] == "train.txt"


def test_the_base_on_the_hub_is_named_only_where_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of that name here is none."""
    (tmp_path / "models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model: owner/base-1.5\n" in card_of("owner/base-1.5")
    for name in ("models/tiny", str(tmp_path / "tiny"), "emoji-sd", "a/b/c", "m/x\ny: z"):
        assert "base_model:" not in card_of(name)
    assert str(tmp_path) not in card_of(str(tmp_path / "tiny"))
    assert "# tiny, fine-tuned by PRDP" in card_of(str(tmp_path / "tiny"))


def test_a_card_of_one_prompt_has_no_interval() -> None:
    assert "| none (one prompt) | 1 |" in card_of("emoji-sd", prompts=1)
    assert "| [+1.0000, +1.0000] | 2 |" in card_of("emoji-sd", prompts=2)
