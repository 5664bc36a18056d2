"""The switch of TF32, on and off, and who turns it; what it does to numbers is for tests on a
GPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import finetune, pipelines, sample, score
from align_gen.bench.timing import in_turns
from align_gen.check.laws import check
from align_gen.galleries.gallery import Gallery
from align_gen.precision import exact_float32
from align_gen.reward_heads import reward_set
from align_gen.training.recipe import Recipe
from tests.tiny import subject

cudnn: Any = torch.backends.cudnn
NEWER = hasattr(cudnn, "conv")


def exact() -> bool:
    return cudnn.conv.fp32_precision == "ieee" if NEWER else not cudnn.allow_tf32


@pytest.fixture(autouse=True)
def by_default() -> Iterator[None]:
    """TF32 is on before, which is why there is something to do, and after."""
    assert not exact()
    yield
    assert not exact()


def test_tf32_is_off_inside_and_as_it_was_after() -> None:
    with exact_float32():
        assert exact()
    with pytest.raises(KeyError), exact_float32():
        raise KeyError


@pytest.mark.skipif(not NEWER, reason="torch before 2.9 has one switch")
def test_who_turned_the_newer_switch_is_no_trouble() -> None:
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        with exact_float32():
            assert exact()
        assert exact()
    finally:
        cudnn.conv.fp32_precision = before


@pytest.mark.slow
def test_everything_that_runs_a_network_turns_it(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside: by a reward, by who is told of progress, by a law, by a work."""
    seen: list[bool] = []

    def look(*_: Any) -> None:
        seen.append(exact())

    def reward(media: Tensor, prompts: Any) -> Tensor:
        look()
        return torch.zeros(len(media))

    def law(_: Any) -> list[Any]:
        look()
        return []

    def expect(run: Callable[[], Any]) -> None:
        seen.clear()
        run()
        assert seen and all(seen)

    size: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}
    model = pipelines.load(str(tiny_folder))
    expect(lambda: sample(model, ["a", "b"], out=tmp_path / "gallery", progress=look, **size))
    expect(lambda: score(Gallery.load(tmp_path / "gallery"), reward_set([reward])))
    monkeypatch.setattr("align_gen.check.laws.LAWS", {"looks": law})
    expect(lambda: check(subject("sd"), untrained=True))
    expect(lambda: in_turns({"work": look}, 1, torch.device("cpu")))
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "eval.txt").write_text("c\n")
    recipe = Recipe.parse(
        {
            "model": {"path": str(tiny_folder), "lora": {"rank": 2}},
            "method": {
                "name": "raft",
                "images_per_prompt": 2,
                "prompts_per_step": 1,
                "gradient_steps": 1,
            },
            "prompts": {"train": str(tmp_path / "train.txt"), "eval": str(tmp_path / "eval.txt")},
            "rewards": {"mean_hue": 1.0},
            "sampling": {"guidance_scale": 2.0, **size},
            "evaluate": {"num_inference_steps": 2, "seeds": [0]},
            "run": {"steps": 1},
        }
    )
    expect(lambda: finetune(recipe, tmp_path / "run", progress=look))
