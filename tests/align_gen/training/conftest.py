"""A recipe, and the uninterrupted run of it that others are compared with."""

from pathlib import Path

import pytest

from align_gen import Recipe, finetune
from align_gen.training.engine import Run
from tests.kits.runs import measured_recipe


@pytest.fixture(scope="session")
def recipe(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return measured_recipe(tmp_path_factory.mktemp("prompts"), tiny_folder)


@pytest.fixture(scope="session")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run that others are compared with; only to be read."""
    return finetune(recipe, tmp_path_factory.mktemp("runs") / "whole")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the readers of the finished run in one process, which then makes the run once."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("finished"))
