"""What README and docs say is what runs."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from align_gen import Recipe, bundled
from align_gen.methods import ddpo

ROOT = Path(__file__).resolve().parent.parent


def python_blocks() -> list[str]:
    return re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )


@pytest.mark.slow
def test_the_three_jobs_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of README as they stand, but for the demo's recipe, which is cut to one small
    step.
    """
    blocks = python_blocks()
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


def test_status_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator refuses a claim whose test file is missing, and a page that is not what it
    writes.
    """
    monkeypatch.setattr(sys, "argv", ["write_status.py", "--check"])
    runpy.run_path(str(ROOT / "scripts" / "write_status.py"), run_name="__main__")


@pytest.mark.slow
def test_models_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off the adapters of every published description."""
    monkeypatch.setattr(sys, "argv", ["write_models.py", "--check"])
    runpy.run_path(str(ROOT / "scripts" / "write_models.py"), run_name="__main__")


def test_every_key_that_replaces_an_argument_is_one() -> None:
    """Of the page for who comes from TRL: each `section.key` of the second column is a key of a
    DDPO recipe.
    """
    recipe = Recipe.load("sd15-ddpo").model_dump() | {"method": ddpo.Options().model_dump()}
    page = (ROOT / "docs/from_trl.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    keys = re.findall(r"`(\w+)\.(\w+)", " ".join(cells))
    assert len(keys) >= 12
    for section, key in keys:
        assert key in recipe[section], f"{section}.{key}"


def test_links_of_the_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    assert len(pages) >= 3
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
