"""Recipes: what ships, the paper's numbers, and every mistake as one line that names the key."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from align_gen import Recipe, bundled
from align_gen.errors import UserError
from align_gen.training.yaml_text import yaml_diff

BUNDLED = {
    "emoji-sd-prdp",
    "paper/prdp-large",
    "paper/prdp-large-multi-reward",
    "paper/prdp-small",
    "emoji-flow-dpo",
    "emoji-flow-prdp",
    "flux-prdp",
    "sd15-ddpo",
    "sd15-prdp",
    "sd35-dpo",
    "sd35-prdp",
    "sdxl-prdp",
    "wan21-prdp",
}

MINIMAL = """\
model: {path: emoji-sd}
method: {name: prdp}
prompts: {train: emoji-train, eval: emoji-heldout}
rewards: {jpeg_size: 1.0}
"""


def warmth(media: Tensor, prompts: Sequence[str]) -> Tensor:
    return media.mean((1, 2, 3))


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A recipe file with the given text."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def line_of(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, which must be one line of readable length."""
    message = str(error.value)
    assert "\n" not in message and 0 < len(message) < 600
    return message


# --- what ships -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_bundled_recipe_loads_and_survives_being_written_down(tmp_path: Path) -> None:
    """to_yaml spells out every default, and reading it gives the same recipe, to the same text."""
    assert set(bundled.recipes()) == BUNDLED
    for name in BUNDLED:
        recipe = Recipe.load(name)
        (tmp_path / "copy.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        again = Recipe.load(tmp_path / "copy.yaml")
        assert again == recipe and again.to_yaml() == recipe.to_yaml()


def test_the_demo_clips() -> None:
    """With one gradient step theta = theta_old and the clip never acts."""
    assert Recipe.load("emoji-sd-prdp").method.model_dump()["gradient_steps"] >= 2


# Table 4 of arXiv 2402.08714: epochs, gradient steps, prompts, images, KL weight, stepwise clip,
# learning rate.
TABLE_4 = {
    "small": (100, 10, 32, 16, 3e-5, 1e-6, 1e-5),
    "large": (1000, 1, 64, 8, 3e-6, 1e-4, 7e-6),
    "large-multi-reward": (1000, 1, 64, 8, 3e-5, 1e-4, 1e-5),
}


@pytest.mark.parametrize("name", sorted(TABLE_4))
def test_paper_values(name: str) -> None:
    recipe = Recipe.load(f"paper/prdp-{name}")
    method = recipe.method.model_dump()
    found = (
        recipe.run.steps,
        method["gradient_steps"],
        method["prompts_per_step"],
        method["images_per_prompt"],
        method["beta"],
        method["clip"],
        recipe.optim.lr,
    )
    assert found == TABLE_4[name]
    assert method["log_prob"] == "mean"
    assert (recipe.optim.weight_decay, recipe.optim.max_grad_norm) == (1e-4, 1.0)
    assert (
        recipe.sampling.num_inference_steps,
        recipe.sampling.guidance_scale,
        recipe.sampling.eta,
    ) == (50, 5.0, 1.0)
    assert recipe.model.lora is None and recipe.model.path == "CompVis/stable-diffusion-v1-4"


# --- numbers, overrides, replacement --------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "1.e-4", ".1e-3", "0.0001", "+1e-4"])
def test_numbers_as_people_write_them(written: Any, text: str) -> None:
    """YAML 1.1 reads 1e-4 as text; nobody means that."""
    path = written(MINIMAL + f"optim: {{lr: {text}}}\n")
    assert Recipe.load(path).optim.lr == pytest.approx(1e-4, rel=1e-12)
    assert Recipe.load(path, [f"optim.lr={text}"]).optim.lr == pytest.approx(1e-4, rel=1e-12)


def test_words_that_only_resemble_numbers_stay_words(written: Any) -> None:
    recipe = Recipe.load(
        written(MINIMAL.replace("emoji-sd", "1e-4b") + "run: {out: e5, tracker: '1e5'}\n")
    )
    assert (recipe.model.path, recipe.run.out, recipe.run.tracker) == ("1e-4b", "e5", "1e5")


def test_options_of_a_reward_keep_their_types(written: Any) -> None:
    recipe = Recipe.load(
        written(MINIMAL.replace("jpeg_size: 1.0", "mean_hue: {hue: 1e2, weight: 2}"))
    )
    assert recipe.rewards == {"mean_hue": {"hue": 100.0, "weight": 2}}


def test_overrides_reach_any_depth() -> None:
    settings = [
        "run.steps=3",
        "model.lora.rank=2",
        "evaluate.seeds=[7]",
        "rewards.jpeg_size.goal=large",
        "stop.patience=9",
    ]
    recipe = Recipe.load("emoji-sd-prdp", settings)
    assert recipe.run.steps == 3 and recipe.evaluate.seeds == (7,) and recipe.stop.patience == 9
    assert recipe.model.lora is not None and recipe.model.lora.rank == 2
    assert recipe.rewards["jpeg_size"] == {"goal": "large"} and "clip" in recipe.rewards


def test_replace_merges_sections_and_swaps_rewards() -> None:
    """One key of a section at a time; rewards are replaced whole, else the old ones would stay in
    the mixture.
    """
    old = Recipe.load("emoji-sd-prdp")
    new = old.replace(
        optim={"lr": 1e-3}, method={"beta": 7.0}, rewards={"jpeg_size": 1.0}, eval_rewards={}
    )
    assert new.optim == old.optim.model_copy(update={"lr": 1e-3})
    assert new.method == old.method.model_copy(update={"beta": 7.0})
    assert new.rewards == {"jpeg_size": 1.0} and not new.eval_rewards
    assert old.optim.lr != 1e-3 and "clip" in old.rewards  # the original is untouched


def test_replace_checks_too() -> None:
    with pytest.raises(UserError, match="did you mean 'optim'"):
        Recipe.load("emoji-sd-prdp").replace(optimm={"lr": 1e-3})
    with pytest.raises(UserError, match=r"optim\.lr"):
        Recipe.load("emoji-sd-prdp").replace(optim={"lr": -1.0})


def test_callables_are_rewards() -> None:
    """As in the README: names and functions side by side; written down by their names."""
    recipe = Recipe.load("sd15-prdp").replace(rewards={"jpeg_size": 1.0, warmth: 0.2})
    assert recipe.rewards[warmth] == 0.2
    assert "warmth: 0.2" in recipe.to_yaml()
    assert torch.equal(
        next(k for k in recipe.rewards if callable(k))(torch.ones(1, 3, 2, 2), ["x"]), torch.ones(1)
    )


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.load("sd15-prdp").run.steps = 3  # type: ignore[misc]


def test_difference_shows_both_sides() -> None:
    mine, theirs = "run:\n  steps: 3\n  seed: 0\n", "run:\n  steps: 4\n  seed: 0\n"
    assert yaml_diff(mine, theirs) == "-steps: 4; +steps: 3"


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "unknown section": (
        MINIMAL + "smapling: {eta: 1}\n",
        r"unknown key smapling; did you mean 'sampling'\?",
    ),
    "unknown key": (
        MINIMAL + "optim: {lrr: 1e-4}\n",
        r"unknown key optim\.lrr; did you mean 'lr'\?",
    ),
    "unknown nested key": (
        MINIMAL.replace("emoji-sd", "x, lora: {rnak: 4}"),
        r"model\.lora\.rnak; did you mean 'rank'\?",
    ),
    "unknown key of the method": (
        MINIMAL.replace("prdp", "prdp, betta: 1"),
        r"method\.betta; did you mean 'beta'\?",
    ),
    "nothing near": (MINIMAL + "optim: {zzz: 1}\n", r"optim\.zzz; known: \['ema', 'lr'"),
    "wrong type": (MINIMAL + "run: {steps: many}\n", r"run\.steps: .*integer.* got 'many'"),
    "wrong type in the method": (
        MINIMAL.replace("prdp", "prdp, beta: [1]"),
        r"method\.beta: .*number",
    ),
    "wrong choice": (
        MINIMAL.replace("emoji-sd", "x, dtype: fp64"),
        r"model\.dtype: .*'fp32'.*got 'fp64'",
    ),
    "no number": (MINIMAL + "optim: {lr: .nan}\n", r"optim\.lr"),
    "one image a prompt": (
        MINIMAL.replace("prdp", "prdp, images_per_prompt: 1"),
        r"method\.images_per_prompt: .*2, got 1",
    ),
    "no stochastic step": (MINIMAL + "sampling: {eta: 0}\n", r"sampling\.eta"),
    "missing section": (
        MINIMAL.replace("prompts:", "hints:"),
        r"prompts: field required|unknown key hints",
    ),
    "no reward at all": (
        MINIMAL.replace("rewards: {jpeg_size: 1.0}", ""),
        r"rewards: nothing says what is good",
    ),
    "no reward": (
        MINIMAL.replace("{jpeg_size: 1.0}", "{}"),
        r"rewards: nothing says what is good; want one or more",
    ),
    "section that is no mapping": (MINIMAL + "optim: 3\n", r"optim: "),
    "unknown method": (
        MINIMAL.replace("prdp", "ppdr"),
        r"method\.name: no method 'ppdr'; have \['ddpo', .*'prdp'",
    ),
    "method of no text": (MINIMAL.replace("prdp", "[prdp]"), r"method\.name"),
    "method without a name": (MINIMAL.replace("name: prdp", ""), r"method\.name"),
    "held-out that is optimised": (
        MINIMAL + "eval_rewards: {jpeg_size: 1}\n",
        r"eval_rewards: \['jpeg_size'\]",
    ),
    "guard that sees nothing": (
        MINIMAL + "stop: {when: eval_rewards_fall}\n",
        r"stop\.when: .*evaluate\.every",
    ),
    "seed twice": (
        MINIMAL + "evaluate: {seeds: [0, 1, 0]}\n",
        r"evaluate\.seeds: .*want each seed once",
    ),
    "no seed": (MINIMAL + "evaluate: {seeds: []}\n", r"evaluate\.seeds"),
    "true for a number": (MINIMAL + "run: {steps: true}\n", r"run\.steps: .*truth value"),
    "true for a number of the method": (
        MINIMAL.replace("prdp", "prdp, beta: yes"),
        r"method\.beta: .*truth value",
    ),
    "key twice": (MINIMAL + "run: {seed: 1, seed: 2}\n", r"key 'seed' stands twice"),
    "section twice": (MINIMAL + "rewards: {mean_hue: 1.0}\n", r"key 'rewards' stands twice"),
    "key that is a number": (MINIMAL + "3: x\n", r"3"),
    "key that is a list": (MINIMAL + "? [a]\n: x\n", r"not YAML"),
    "no YAML": (MINIMAL + "run: {steps: [\n", r"not YAML"),
    "a list": ("- a\n", r"want a mapping with the sections"),
    "nothing": ("", r"want a mapping with the sections"),
    "a Python object": (
        MINIMAL + "run: !!python/object/apply:os.system ['true']\n",
        r"not YAML.*python/object",
    ),
    "a Python name": (MINIMAL + "run: !!python/name:os.system\n", r"not YAML.*python/name"),
    "nested without end": ("run: " + "[" * 1200, r"mine\.yaml"),
}


@pytest.mark.parametrize("case", sorted(MISTAKES))
def test_a_mistake_is_one_line_that_names_the_key(written: Any, case: str) -> None:
    text, pattern = MISTAKES[case]
    path = written(text)
    with pytest.raises(UserError) as error:
        Recipe.load(path)
    assert re.search(pattern, line_of(error)), str(error.value)
    assert (
        "mine.yaml" in str(error.value) or case == "no stochastic step"
    )  # which --set can cause, too


@pytest.mark.parametrize(
    "alias", ["run: {steps: *f}", "rewards: {jpeg_size: *f}", "method: {name: *f}"]
)
def test_a_yaml_bomb_is_defused(written: Any, alias: str) -> None:
    """Aliases of aliases: six short lines stand for 10^6 words, and thirty would for more than any
    memory.
    """
    rows = ["a: &a [w, w, w, w, w, w, w, w, w, w]"]
    for last, name in zip("abcde", "bcdef", strict=True):
        rows.append(f"{name}: &{name} [{', '.join(['*' + last] * 10)}]")
    section = alias.partition(":")[0]
    kept = [line for line in MINIMAL.splitlines() if not line.startswith(section)]
    path = written("\n".join(["x:", *("  " + row for row in rows), *kept, alias]))
    with pytest.raises(UserError) as error:
        Recipe.load(path)
    assert "unknown key x" not in line_of(
        error
    )  # the aliases themselves are refused, wherever they stand


def test_a_long_wrong_value_is_not_printed_whole(written: Any) -> None:
    with pytest.raises(UserError) as error:
        Recipe.load(written(MINIMAL + f"run: {{steps: {'x' * 5000}}}\n"))
    assert "run.steps" in line_of(error)


def test_no_such_recipe_lists_what_exists() -> None:
    with pytest.raises(UserError, match=r"recipe 'emoji-prdp': no such file.*'emoji-sd-prdp'"):
        Recipe.load("emoji-prdp")


def test_a_picture_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\x00")
    with pytest.raises(UserError, match=r"mine\.yaml: not YAML"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("run.steps", "want section.key=value"),
        ("=3", "want section.key=value"),
        ("run.stepps=3", r"unknown key run\.stepps; did you mean 'steps'"),
        ("run.steps=x", r"run\.steps"),
        ("run.steps.more=3", "steps is no section"),
        ("run.steps=[", "is not YAML"),
        ("method.name=dpoo", r"no method 'dpoo'"),
    ],
)
def test_a_wrong_override_is_named(override: str, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as error:
        Recipe.load("emoji-sd-prdp", [override])
    line_of(error)


def test_another_method_replaces_the_whole_section() -> None:
    """Keys of the one mean nothing to the other; keys alone change the one that is there."""
    recipe = Recipe.load("emoji-sd-prdp")
    other = recipe.replace(method={"name": "ddpo", "clip": 0.5}).method.model_dump()
    assert (other["name"], other["clip"]) == ("ddpo", 0.5) and "beta" not in other
    changed = recipe.replace(method={"clip": 0.5}).method
    assert changed == recipe.method.model_copy(update={"clip": 0.5})


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"metod": {"name": "prdp"}}, r"unknown key metod; did you mean 'method'\?"),
        ({"training": {"steps": 3}}, r"unknown key training; did you mean 'run\.steps'\?"),
        ({"steps": 3}, r"unknown key steps; did you mean 'run\.steps'\?"),
    ],
    ids=["a slip", "another section", "no section"],
)
def test_an_unknown_section_comes_before_what_is_missing(
    changes: dict[str, Any], pattern: str
) -> None:
    data = Recipe.load("emoji-sd-prdp").model_dump()
    if "metod" in changes:
        del data["method"]
    with pytest.raises(UserError, match=pattern) as error:
        Recipe.parse({**data, **changes})
    line_of(error)


def test_both_spellings_of_a_precision_and_a_lone_seed() -> None:
    recipe = Recipe.load("emoji-sd-prdp", ["model.dtype=bfloat16", "evaluate.seeds=0"])
    assert recipe.model.dtype == "bf16" and recipe.evaluate.seeds == (0,)
    assert recipe == Recipe.load("emoji-sd-prdp", ["model.dtype=bf16", "evaluate.seeds=[0]"])


def test_files_are_looked_up_beside_the_recipe_and_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files of one name: the nearer one. A bundled name is no file, nor is a reward's."""
    here = tmp_path / "here"
    there = tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "train.txt").write_text("a red dog")
    (here / "eval.txt").write_text("a green fox")
    for name in ("warm.py", "emoji-sd", "clip", "weights"):
        (there / name).mkdir() if "." not in name else (there / name).write_text("")
    recipe = {
        "model": {"path": "emoji-sd"},
        "method": {"name": "prdp"},
        "prompts": {"train": "train.txt", "eval": "eval.txt"},
        "rewards": {"warm.py:warm": 1.0, "clip": {"path": "weights"}, "cold.py:cold": 1.0},
    }
    (there / "mine.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(here)
    loaded = Recipe.load("../there/mine.yaml", allow_code=True)
    assert loaded.prompts.train == "../there/train.txt" and loaded.prompts.eval == "eval.txt"
    assert loaded.model.path == "emoji-sd"
    assert loaded.rewards == {
        "../there/warm.py:warm": 1.0,
        "clip": {"path": "../there/weights"},
        "cold.py:cold": 1.0,
    }
    as_it_is = Recipe.load("../there/mine.yaml", beside=False, allow_code=True)
    assert as_it_is.prompts.train == "train.txt"


def test_a_recipe_prints_as_one_short_line() -> None:
    recipe = Recipe.load("emoji-sd-prdp")
    assert repr(recipe) == str(recipe) == "Recipe(prdp on 'emoji-sd', 20 steps)"
