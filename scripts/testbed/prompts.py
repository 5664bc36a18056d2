"""The bundled prompt lists and a few real pictures.

The lists of animals in assets/prompts say "a owl": runs were measured with them, so they stay.
Lists written from now on say "an owl".
"""

import json
from pathlib import Path

import numpy as np

from .captions import HELD_OUT_PLAIN, PLAIN, TRAINED_STYLES, Row
from .pictures import Pictures

ANIMALS = """
cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox
wolf lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog
chicken duck goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo
"""
OTHER_ANIMALS = """
penguin owl elephant giraffe panda koala otter peacock crab hippo seal swan leopard moose beaver
parrot
"""


def painting_of(animal: str) -> str:
    """A prompt about an animal."""
    return f"A painting of {with_article(animal)}"


def with_article(noun: str) -> str:
    """A noun with "an" before a vowel letter, else "a": enough for the lists of animals."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def write_prompts(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """Write prompts without a style word.

    Held-out prompts are of other things, in wordings the generator never saw.
    """
    folder = out.parent / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = Pictures.load(data, TRAINED_STYLES)
    things = sorted({(row["thing"], row["group"]) for row in pictures.rows})
    order = np.random.default_rng(5).permutation(len(things))
    lists: dict[str, list[Row]] = {"emoji-train": [], "emoji-heldout": []}
    for rank, index in enumerate(order):
        thing, group = things[index]
        held_out = rank < 80
        templates = HELD_OUT_PLAIN if held_out else PLAIN
        prompt = templates[rank % len(templates)].format(thing)
        rows = lists["emoji-heldout" if held_out else "emoji-train"]
        rows.append({"prompt": prompt, "thing": thing, "group": group})
    for split, animals in (("animals-train", ANIMALS), ("animals-heldout", OTHER_ANIMALS)):
        names = animals.split()
        lists[split] = [{"prompt": painting_of(animal), "thing": animal} for animal in names]
    lists["emoji-things"] = [{"prompt": thing, "group": group} for thing, group in things]
    for split, entries in lists.items():
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"{split}.jsonl").write_text(lines)
        print(f"{len(entries)} prompts -> {folder / split}.jsonl")


def write_pictures(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """Write eight real pictures to look at a model with, 3D and flat in turn."""
    from align_gen.galleries.gallery import write_gallery

    pictures = Pictures.load(data, ("3d", "flat"))
    things = (
        "red apple",
        "pizza",
        "dog face",
        "sunflower",
        "octopus",
        "hamburger",
        "red heart",
        "whale",
    )
    rows: list[Row] = [
        {"prompt": f"{thing}, {style} style", "thing": thing, "style": style}
        for thing, style in zip(things, ("3d", "flat") * 4, strict=True)
    ]
    where = {(row["thing"], row["style"]): i for i, row in enumerate(pictures.rows)}
    write_gallery(
        out.parent / "pictures",
        pictures.pixels[[where[row["thing"], row["style"]] for row in rows]],
        rows,
    )
