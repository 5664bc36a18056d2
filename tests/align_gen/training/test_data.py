"""What a run learns from: pairs and given pictures, what is left out of them and counted, and how
they are fitted.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, finetune
from align_gen.errors import RunFailure, UserError
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.pairs import write_pairs
from align_gen.methods.batches import Sampling
from align_gen.pipelines import Model
from align_gen.training import setup
from align_gen.training.data import MediaData, PairData, PromptData, draw_batch, fitted
from tests.kits.runs import TRAIN, small_recipe
from tests.tiny import subject


@pytest.fixture(scope="module")
def model() -> Model:
    return subject("sd").model


SIZE = Sampling(height=16, width=16)


def gallery(folder: Path, prompts: list[str], size: int = 16) -> Path:
    """Pictures of level n / 10, one for each prompt."""
    media = (torch.arange(len(prompts)) / 10).view(-1, 1, 1, 1).expand(-1, 3, size, size)
    write_gallery(folder, media, [{"prompt": prompt} for prompt in prompts])
    return folder


def pair(prompt: str, better: int, worse: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"{better:05d}.png", "rejected": f"{worse:05d}.png", **more}


def levels(media: Tensor) -> list[float]:
    return [round(level, 2) for level in media.flatten(1).mean(1).tolist()]


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_come_better_first_at_the_runs_size(tmp_path: Path, model: Model) -> None:
    """A label of -1 says that the second is better; pictures of 24 pixels are fitted into 16."""
    folder = gallery(tmp_path / "g", ["a", "a", "b", "b"], size=24)
    write_pairs(tmp_path / "p.parquet", [pair("a", 1, 0), pair("b", 2, 3, label=-1)], folder)
    data = PairData.load(str(tmp_path / "p.parquet"))
    assert len(data) == 2 and data.prompts == ["a", "b"] and data.skipped == {}
    batch = data.batch([1, 0], [7, 8], model, SIZE)
    assert batch.texts == ["b", "a"] and batch.ids == [7, 8] and len(batch.condition) == 2
    assert batch.chosen.shape == batch.rejected.shape == (2, 3, 16, 16)
    assert levels(batch.chosen) == [0.3, 0.1] and levels(batch.rejected) == [0.2, 0.0]


def test_what_cannot_be_learned_from_is_counted(tmp_path: Path) -> None:
    """A tie, a label that says nothing, one picture twice (by its bytes), files that are gone or no
    pictures.
    """
    folder = gallery(tmp_path / "g", ["a"] * 6)
    (folder / "00002.png").write_bytes((folder / "00001.png").read_bytes())
    (folder / "00003.png").write_bytes(b"no picture")
    (folder / "00004.png").unlink()
    rows = [
        pair("a", 0, 1),
        pair("a", 0, 1, label=0),
        pair("a", 0, 1, label=7),
        pair("a", 1, 2),
        pair("a", 0, 3),
        pair("a", 4, 0),
        pair("a", 5, 0),
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PairData.load(str(folder))
    assert len(data) == 2
    assert data.skipped == {
        "ties": 1,
        "unlabelled": 1,
        "the same picture twice": 1,
        "unreadable": 2,
    }


def test_nothing_left_is_a_mistake_that_says_why(tmp_path: Path) -> None:
    folder = gallery(tmp_path / "g", ["a", "a"])
    write_pairs(tmp_path / "p.parquet", [pair("a", 0, 1, label=0)], folder)
    with pytest.raises(UserError, match=r"data\.pairs: .*no pair to learn from \({'ties': 1}\)"):
        PairData.load(str(tmp_path / "p.parquet"))


def test_pictures_of_different_sizes_in_a_pair_are_fitted(tmp_path: Path, model: Model) -> None:
    folder = gallery(tmp_path / "g", ["a", "a"], size=32)
    small = gallery(tmp_path / "small", ["a", "a"], size=20)
    (small / "00001.png").replace(folder / "00001.png")
    write_pairs(tmp_path / "p.parquet", [pair("a", 1, 0)], folder)
    batch = PairData.load(str(tmp_path / "p.parquet")).batch([0], [0], model, SIZE)
    assert batch.chosen.shape == batch.rejected.shape == (1, 3, 16, 16)


# --- given pictures -------------------------------------------------------------------------------


def test_units_are_groups_of_a_prompt(tmp_path: Path, model: Model) -> None:
    """Of five of a and two of b in groups of two: two units of a, one of b, one picture left
    over.
    """
    folder = gallery(tmp_path / "g", ["a", "b", "a", "a", "b", "a", "a"])
    data = MediaData.load(str(folder), 2)
    assert data.prompts == ["a", "a", "b"] and data.skipped == {"too few of their prompt": 1}
    batch = data.batch([2, 0], [5, 6], model, SIZE)
    assert batch.texts == ["b", "b", "a", "a"] and batch.ids == [10, 11, 12, 13]
    assert levels(batch.media) == [0.1, 0.4, 0.0, 0.2]


def test_given_pictures_without_prompts_or_unreadable_are_counted(tmp_path: Path) -> None:
    folder = gallery(tmp_path / "g", ["a", "a", "a"])
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    del rows[0]["prompt"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "00001.png").write_bytes(b"")
    data = MediaData.load(str(folder), 1)
    assert len(data) == 1 and data.skipped == {"without a prompt": 1, "unreadable": 1}
    with pytest.raises(UserError, match=r"data\.media: .*want 2 of each prompt"):
        MediaData.load(str(folder), 2)


def test_a_picture_that_breaks_while_learning_ends_the_run_with_its_name(
    tmp_path: Path, model: Model
) -> None:
    """Its first bytes were those of a picture."""
    folder = gallery(tmp_path / "g", ["a"])
    data = MediaData.load(str(folder), 1)
    (folder / "00000.png").write_bytes((folder / "00000.png").read_bytes()[:40])
    with pytest.raises(RunFailure, match=r"00000\.png: .*take it out of the data"):
        data.batch([0], [0], model, SIZE)


def test_what_does_not_fit_is_resized_by_its_shorter_side_and_cropped(model: Model) -> None:
    """32 x 64 into 16 x 16: the middle half of the width stays, where it is bright."""
    wide = torch.zeros(3, 32, 64)
    wide[..., 16:48] = 1
    assert fitted(wide, model, SIZE).mean() > 0.95
    exact = torch.rand(3, 16, 16)
    assert torch.equal(fitted(exact, model, SIZE), exact)


def test_a_longer_video_gives_frames_spread_over_it(model: Model) -> None:
    """9 frames to 3: the first, the middle and the last."""
    video = torch.arange(9).float().view(9, 1, 1, 1).expand(9, 3, 16, 16)
    found = fitted(video, model, Sampling(height=16, width=16, num_frames=3))
    assert found[:, 0, 0, 0].tolist() == [0, 4, 8]


def test_prompts_are_units_of_their_own(model: Model) -> None:
    data = PromptData(["a", "b"])
    batch = data.batch([1, 1], [3, 4], model, SIZE)
    assert (batch.texts, batch.ids, len(data)) == (["b", "b"], [3, 4], 2)


# --- which units a step gets ----------------------------------------------------------------------


def drawn(recipe: Recipe, prompts: list[str], steps: int) -> list[Any]:
    from accelerate import Accelerator

    model = setup.load_model(recipe)
    setup.prepare_model(recipe, model)
    state = setup.prepare_state(recipe, model, Accelerator(cpu=True))
    batches = []
    for state.step in range(steps):
        batches.append(draw_batch(PromptData(prompts), recipe, state))
    return batches


def test_every_epoch_is_a_permutation(recipe: Recipe) -> None:
    """5 prompts, 2 a step: five steps are two epochs, in which every prompt comes twice, once in
    each.
    """
    texts = [text for batch in drawn(recipe, list(TRAIN), 5) for text in batch.texts]
    assert sorted(texts[:5]) == sorted(texts[5:]) == sorted(TRAIN)


def test_a_prompt_twice_in_a_step_is_two_draws(recipe: Recipe) -> None:
    """Where an epoch ends inside a step, a prompt can come twice in it; with the same id it would
    be the same noise and half of the work for nothing (45 prompts, 32 a step, as in the paper: in
    two steps of three).
    """
    for batch in drawn(recipe, ["a"], 2):
        assert list(batch.texts) == ["a", "a"]
        assert len(set(batch.ids)) == 2


# --- in a run -------------------------------------------------------------------------------------


def media_recipe(folder: Path, model: Path, /, **sections: Any) -> Recipe:
    """Supervised fine-tuning, and nothing that it could learn from yet."""
    sources: dict[str, Any] = {
        "prompts": {"eval": str(folder / "eval.txt")},
        "rewards": {},
        "eval_rewards": {"hue": {"name": "mean_hue"}},
    }
    method = {"name": "sft", "images_per_prompt": 1}
    return small_recipe(folder, model, method, **sources | sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, r"data\.media: method sft learns from it; want a file or a name"),
        (
            {"data": {"media": "g", "pairs": "p"}},
            r"data\.pairs: method sft does not use it; want data\.media alone",
        ),
        ({"data": {"media": "g"}, "eval_rewards": {}}, "eval_rewards: nothing to measure with"),
        (
            {"method": {"name": "ddpo"}, "prompts": {"train": "t", "eval": "e"}},
            "rewards: nothing says what is good",
        ),
        (
            {"method": {"name": "ddpo"}, "rewards": {"mean_hue": 1.0}},
            r"prompts\.train: method ddpo learns from it",
        ),
    ],
)
def test_a_missing_or_useless_source_is_named(
    tiny_folder: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        media_recipe(tmp_path, tiny_folder, **sections)


def test_held_out_prompts_may_not_be_in_the_data(tiny_folder: Path, tmp_path: Path) -> None:
    folder = gallery(tmp_path / "g", ["a  Green fox"])
    with pytest.raises(UserError, match="overlap in 1 prompts"):
        finetune(media_recipe(tmp_path, tiny_folder, data={"media": str(folder)}), tmp_path / "run")
    with pytest.raises(UserError, match="no such folder"):
        finetune(
            media_recipe(tmp_path, tiny_folder, data={"media": str(tmp_path / "nowhere")}),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
