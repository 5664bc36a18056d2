"""Scripts beside the package: what they write is good English."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
lists: Any = import_module("testbed.prompts")


def test_an_animal_has_its_article() -> None:
    assert lists.painting_of("owl") == "A painting of an owl"
    assert lists.painting_of("elephant") == "A painting of an elephant"
    assert lists.painting_of("cat") == "A painting of a cat"


def test_new_prompt_lists_have_articles(tmp_path: Path) -> None:
    """No held-out animal follows "a" where its name begins with a vowel."""
    rows = [{"thing": f"thing {n}", "group": "g", "style": "3d"} for n in range(90)]
    np.save(tmp_path / "pictures.npy", np.zeros((90, 1, 1, 3), np.uint8))
    (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lists.write_prompts("prompts", tmp_path, tmp_path, tmp_path / "models", None)
    written = (tmp_path / "prompts" / "animals-heldout.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in written]
    assert "A painting of an otter" in prompts and "A painting of a panda" in prompts
    assert not [prompt for prompt in prompts if " a o" in prompt or " a e" in prompt]
    held_out = (tmp_path / "prompts" / "emoji-heldout.jsonl").read_text().splitlines()
    assert len(held_out) == 80


def test_the_testbed_has_a_trainer_for_every_model() -> None:
    trainers = import_module("train_testbed").TRAINERS
    models = Path(__file__).resolve().parent.parent / "assets" / "models"
    folders = {path.name for path in models.iterdir() if path.is_dir()} - {"emoji-hps"}
    assert folders <= set(trainers)
    assert set(trainers) - folders == {"emoji-vae", "prompts", "pictures"}


@pytest.mark.parametrize("commented", [True, False])
def test_measuring_code_counts_what_is_there(commented: bool) -> None:
    """Three filled lines; an assignment is four nodes (Assign, Name, Store, Constant), Module 1."""
    measure: Any = import_module("measure_code")
    text = "# why\na = 1\n\nb = 2\n" if commented else "a = 1\n\nb = 2\nc = 3\n"
    table = measure.Table([measure.Source("align_gen/x.py", text)])
    nodes = 9 if commented else 13
    assert table.nodes == pytest.approx(nodes / 3)
    assert table.full == pytest.approx(100 / 3 if commented else 0)


def test_results_are_written_into_the_run_unless_docs_are_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: Any = import_module("results")
    monkeypatch.setattr(results, "page", lambda runs, flow: "the page")
    monkeypatch.setattr(results, "picture", lambda run: Image.new("RGB", (1, 1)))
    monkeypatch.setattr(results, "DOCS", tmp_path / "docs" / "results.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path / "run")])
    results.main()
    written = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert written == ["demo.png", "results.md"] and not list((tmp_path / "docs").iterdir())
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path / "run"), "--docs"])
    results.main()
    assert (tmp_path / "docs" / "results.md").read_text() == "the page"
