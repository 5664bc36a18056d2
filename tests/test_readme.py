"""What README and docs say is what runs."""

import re
import runpy
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import yaml

from align_gen import Recipe, __version__, bundled
from align_gen.galleries.prompts import load_prompts, require_disjoint
from align_gen.methods import ddpo
from align_gen.reward_heads import reward_set

ROOT = Path(__file__).resolve().parent.parent


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


@pytest.mark.slow
def test_the_three_jobs_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run README's blocks as they stand; only the demo's recipe is cut to one small step."""
    blocks = blocks_of("README.md", "python")
    assert len(blocks) == 3
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 10 for block in blocks)
    prompts = (bundled.PROMPTS / "emoji-heldout.jsonl").read_text().splitlines()[:3]
    (tmp_path / "few.jsonl").write_text("\n".join(prompts))
    text = (bundled.RECIPES / "emoji-sd-prdp.yaml").read_text()
    small = {
        r"steps: \d+": "steps: 1",
        "eval: emoji-heldout": "eval: few.jsonl",
        r"steps: 20\b": "steps: 2",
    }
    small |= {
        r"prompts_per_step: \d+": "prompts_per_step: 1",
        r"num_inference_steps: \d+": "num_inference_steps: 2",
    }
    for pattern, replacement in small.items():
        text = re.sub(pattern, replacement, text)
    (tmp_path / "small.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace('"emoji-sd-prdp"', '"small.yaml"'), "README.md", "exec"), names)
    assert (tmp_path / "runs/warm/export/pytorch_lora_weights.safetensors").is_file()
    assert {path.name for path in (tmp_path / "shiny").iterdir()} >= {
        "00000.png",
        "00001.png",
        "metadata.jsonl",
    }


def test_the_tutorials_recipe_is_one_and_its_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of its first part, as a reader would write them, make a run that can start."""
    recipe, *_ = blocks_of("docs/tutorial.md", "yaml")
    reward, *_ = blocks_of("docs/tutorial.md", "python")
    train, held_out, *_ = blocks_of("docs/tutorial.md", "")
    monkeypatch.chdir(tmp_path)
    files = {"blue.yaml": recipe, "blue.py": reward, "train.txt": train, "heldout.txt": held_out}
    for name, text in files.items():
        Path(name).write_text(text)
    loaded = Recipe.load("blue.yaml", allow_code=True)
    rewards = reward_set(bundled.reward_spec({**loaded.rewards, **loaded.eval_rewards}))
    scores = rewards(torch.zeros(2, 3, 64, 64), ["a lemon", "a key"])
    assert scores.heads["blue"].tolist() == [0.0, 0.0]
    prompts = load_prompts(loaded.prompts.train or "")
    assert len(prompts) == 16
    require_disjoint(prompts, load_prompts(loaded.prompts.eval))


def test_every_recipe_says_what_it_does_and_what_it_costs() -> None:
    """The first line is one sentence; a line of costs and one of measurements follow."""
    names = bundled.recipes()
    assert len(names) >= 13
    for name in names:
        lines = (bundled.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comments = list(takewhile(lambda line: line.startswith("# "), lines))
        assert re.fullmatch(r"# [A-Z].*\.", comments[0]), f"{name}: {comments[:1]}"
        for start in ("# Rows through the denoiser: ", "# Memory: ", "# Measured: "):
            assert any(line.startswith(start) for line in comments), f"{name}: {start}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    assert len(pages) >= 14
    for page in sorted(pages - {Path("README.md")}):
        assert str(page) in index, page


def test_status_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator refuses a claim without its test file, and a page that it did not write."""
    monkeypatch.setattr(sys, "argv", ["write_status.py", "--check"])
    runpy.run_path(str(ROOT / "scripts" / "write_status.py"), run_name="__main__")


@pytest.mark.slow
def test_models_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off the adapters of every published description."""
    monkeypatch.setattr(sys, "argv", ["write_models.py", "--check"])
    runpy.run_path(str(ROOT / "scripts" / "write_models.py"), run_name="__main__")


def test_every_key_that_replaces_an_argument_is_one() -> None:
    """On the page for users of TRL, each `section.key` of column two is a key of a DDPO recipe."""
    recipe = Recipe.load("sd15-ddpo").model_dump() | {"method": ddpo.Options().model_dump()}
    page = (ROOT / "docs/from_trl.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    keys = re.findall(r"`(\w+)\.(\w+)", " ".join(cells))
    assert len(keys) >= 12
    for section, key in keys:
        assert key in recipe[section], f"{section}.{key}"


def test_links_of_the_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert len(pages) >= 16
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
