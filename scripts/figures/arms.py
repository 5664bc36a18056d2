"""The arms of the comparison of methods: what each changes in the demo's recipe."""

from pathlib import Path
from typing import Any

from align_gen.galleries.prompts import load_prompts
from align_gen.training.recipe import Recipe

Section = dict[str, Any]
SMALL: Section = {"images_per_prompt": 8, "prompts_per_step": 8}
SLOW = 2e-4  # regression on one's own pictures fell apart at the demo's 1.2e-3
# These learn the conditional branch, whose own pictures are unguided; guidance in them adds up.
OWN: dict[str, Section] = {
    "sampling": {"num_inference_steps": 20, "guidance_scale": 1.0, "eta": 0.0},
    "evaluate": {"guidance_scale": 3.0},
    "optim": {"lr": SLOW},
}
DDPO: Section = {"name": "ddpo", **SMALL, "clip": 4e-3}
NFT = {"name": "nft", **SMALL, "times_per_image": 4, "advantage_limit": 1.0}
OFFLINE = {"name": "dpo", "prompts_per_step": 64, "images_per_prompt": 2, "beta": 1000.0}
MANY_PRDP = {"images_per_prompt": 2, "keep": None, "prompts_per_step": 32}
MANY_DDPO = {**DDPO, "images_per_prompt": 1, "prompts_per_step": 64, "history": 32}
VIDEO_SHARE = 10  # of the calls: a row of eight frames costs about twenty times a picture's
FLAT = {"name": "clip", "goal": ["a flat icon"], "baseline": ["a glossy 3d emoji"], "alpha": 1.0}
VIDEO: dict[str, Section] = {  # emoji-video draws in 3D already, so its goal is the other one
    "rewards": {"clip": {**FLAT, "path": "emoji-clip"}},
    "eval_rewards": {
        "heldout": {**FLAT, "path": "emoji-heldout-clip"},
        "alignment": {"name": "clip", "path": "emoji-heldout-clip"},
    },
    "model": {"path": "emoji-video", "lora": {"rank": 16}},
    "optim": {"lr": 6e-4, "micro_batch": 8},
    "evaluate": {"seeds": [0, 1], "num_inference_steps": 10, "batch_size": 8},
}
ARMS: dict[str, dict[str, Section]] = {  # sections of the recipe that differ from the demo's
    "prdp": {},
    "prdp, placebo": {"run": {"placebo": True}},
    "ddpo": {"method": DDPO},
    "grpo": {"method": {**DDPO, "name": "grpo", "window": 2}},
    "nft": {"method": NFT},
    "rwr": {
        **OWN,
        "method": {
            "name": "rwr",
            **SMALL,
            "weights": "exponential",
            "beta": 1.0,
            "gradient_steps": 4,
        },
    },
    "raft": {**OWN, "method": {"name": "raft", **SMALL, "gradient_steps": 8}},
    "dpo, online": {
        "method": {"name": "dpo", "online": True, **SMALL, "beta": 1000.0, "gradient_steps": 4},
        "optim": {"lr": 6e-4},
    },
    "dpo, offline": {"method": OFFLINE, "data": {"pairs": "pairs.parquet"}, "optim": {"lr": 6e-4}},
    "sft on the best": {
        "method": {"name": "sft", "prompts_per_step": 64},
        "data": {"media": "best"},
        "optim": {"lr": SLOW},
    },
    "prdp, 32 prompts": {"method": MANY_PRDP},
    "ddpo, 64 prompts": {"method": MANY_DDPO},
    "flow-dpo": {
        "model": {"path": "emoji-flow"},
        "method": OFFLINE,
        "data": {"pairs": "pairs.parquet"},
        "optim": {"lr": 1e-3},
    },
    "dpo on videos": {
        **VIDEO,
        "method": {**OFFLINE, "prompts_per_step": 16},
        "data": {"pairs": "pairs.parquet"},
    },
}
RIVALS = ("style in the prompt", "best of N", "TRL's ddpo")
DRAWN: dict[str, dict[str, Any]] = {  # what offline arms learn from
    "emoji-sd": {
        "seeds": (0, 1, 2, 3),
        "num_inference_steps": 20,
        "prompts": None,
        "batch_size": 64,
    },
    "emoji-flow": {
        "seeds": (0, 1, 2, 3),
        "num_inference_steps": 20,
        "prompts": None,
        "batch_size": 64,
    },
    "emoji-video": {"seeds": (0, 1), "num_inference_steps": 8, "prompts": 160, "batch_size": 8},
}
BASES = {
    "emoji-sd": "emoji-sd-prdp",
    "emoji-flow": "emoji-flow-prdp",
    "emoji-video": "emoji-sd-prdp",
}


def model_of(arm: str) -> str:
    """The bundled model that an arm starts from."""
    model: str = ARMS[arm].get("model", {}).get("path", "emoji-sd")
    return model


def recipe_of(arm: str, seed: int, calls: int, folder: Path) -> tuple[Recipe, int]:
    """The arm's recipe with as many steps as ``calls`` rows forward allow, and the rows spent.

    Rows are spent before training by arms that learn from drawn pictures.
    """
    model = model_of(arm)
    base = Recipe.load(BASES[model])
    sections = {key: dict(value) for key, value in ARMS[arm].items()}
    spent = 0
    if "data" in sections:
        drawn = folder / f"drawn-{model}"
        sections["data"] = {key: str(drawn / name) for key, name in sections["data"].items()}
        sections["prompts"] = {"train": None, "eval": base.prompts.eval}
        settings = DRAWN[model]
        count = settings["prompts"] or len(load_prompts(str(base.prompts.train)))
        spent = count * len(settings["seeds"]) * settings["num_inference_steps"] * 2
    sections["run"] = {"seed": seed, "save_every": 20, "out": None, **sections.get("run", {})}
    recipe = base.replace(**sections)

    # A row is one sample through the denoiser; guidance doubles them.
    rows_per_sample = 1 if recipe.sampling.guidance_scale == 1 else 2
    cost = recipe.method.cost(recipe.sampling, rows_per_sample)
    calls //= VIDEO_SHARE if model == "emoji-video" else 1
    steps = max(1, round((calls - spent) / cost.forwards))
    return recipe.replace(run={"steps": steps}), spent
