"""The CLIPs: a tokenizer, two designs, training and measuring."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import HELD_OUT_STYLE, TRAINED_STYLES, Row, caption, every_sentence
from .loop import generator, save_half, train, write_card
from .pictures import Pictures, recolour, soften, warp


def write_tokenizer(folder: Path, rows: list[Row], *, vocab_size: int, length: int) -> int:
    """A CLIP byte-pair tokenizer over a small vocabulary, written to ``folder``. Returns its size.

    One that is there stays: ties are broken by chance, so a second training would give a model's
    words other ids.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    if (folder / "tokenizer.json").is_file():
        return len(CLIPTokenizer.from_pretrained(folder))

    # CLIP's own splitting and byte alphabet, over the words of this testbed.
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=_words(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(every_sentence(rows), trainer)
    state = json.loads(bpe.to_str())["model"]
    vocab = dict(state["vocab"])
    for symbol in sorted(alphabet):  # every byte can also end a word
        vocab.setdefault(symbol + "</w>", len(vocab))
    # The end is the highest id: CLIP pools there by argmax.
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)

    # Versions of tokenizers write a merge as a list or as a text.
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" "))
        for merge in state["merges"]
    ]
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token="<|endoftext|>", model_max_length=length
    )
    tokenizer.save_pretrained(folder)
    return len(vocab)


def _words() -> Any:  # the split of CLIP's own tokenizer
    from tokenizers import Regex

    return Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")


@dataclass
class ClipDesign:
    seed: int
    width: int
    layers: tuple[int, int, int, int]
    embed_dim: int
    text_width: int
    held_out: bool  # sentences and augmentation of the held-out judge
    steps: int
    batch: int = 96
    length: int = 32


CLIPS = {
    "emoji-clip": ClipDesign(1, 32, (1, 2, 2, 1), 128, 128, False, steps=3000),
    "emoji-heldout-clip": ClipDesign(2, 24, (2, 2, 2, 2), 96, 96, True, steps=1600),
}

TITLES = {
    "emoji-clip": "a small open_clip model that scores emoji",
    "emoji-heldout-clip": "a second open_clip model of emoji, to check the first one's scores",
}


def clip_config(design: ClipDesign, vocab: int) -> Row:
    vision: Row = {
        "image_size": 64,
        "layers": list(design.layers),
        "width": design.width,
        "head_width": 64,
    }
    text: Row = {
        "context_length": design.length,
        "vocab_size": vocab,
        "width": design.text_width,
        "heads": 4,
        "layers": 2,
    }
    text |= {
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"clean_up_tokenization_spaces": False},
    }
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "squash"}
    return {
        "model_cfg": {"embed_dim": design.embed_dim, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": preprocess,
    }


def train_clip(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """Contrast with several positives: a caption is true of all pictures it does not contradict."""
    import open_clip

    design = CLIPS[name]
    pictures = Pictures.load(data, TRAINED_STYLES)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(folder, pictures.rows, vocab_size=1600, length=design.length)

    # open_clip builds the model from this file, here and for readers.
    config = clip_config(design, vocab)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    torch.manual_seed(design.seed)
    model = open_clip.CLIP(**config["model_cfg"]).to(memory_format=torch.channels_last)
    normalise = ClipNormalise(config["preprocess_cfg"])

    # Things that every style has, for the second part of training.
    siblings: dict[str, list[int]] = {}
    for index, row in enumerate(pictures.rows):
        siblings.setdefault(row["thing"], []).append(index)
    trios = torch.tensor(
        [group for group in siblings.values() if len(group) == len(TRAINED_STYLES)]
    )

    def loss_on(
        model: Any, index: Tensor, bare_style: float, g: torch.Generator, rng: np.random.Generator
    ) -> Tensor:
        pixels = pictures.pixels[index]
        if design.held_out:
            pixels = soften(
                recolour(warp(pixels, g, shift=0.05, scale=0.15, turn=0.3), g, 0.5), g, 0.5
            )
        else:
            pixels = soften(
                recolour(warp(pixels, g, shift=0.08, scale=0.2, turn=0.15), g, 0.3), g, 0.3
            )
        rows = [pictures.rows[i] for i in index]
        captions = [
            caption(row, rng, design.held_out and rng.random() < 0.7, bare_style) for row in rows
        ]
        true = torch.tensor(
            [
                [c.thing in (None, r["thing"]) and c.style in (None, r["style"]) for c in captions]
                for r in rows
            ]
        ).float()
        pixels = normalise(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image(pixels)
            text = model.encode_text(tokenizer([c.text for c in captions]))
        image = F.normalize(image.float(), dim=-1)
        text = F.normalize(text.float(), dim=-1)
        return several_positives(model.logit_scale.exp().clamp(max=100) * image @ text.T, true)

    def learn_things(model: Any, step: int) -> Tensor:
        g = generator(design.seed, step)
        index = torch.randint(len(pictures.rows), (design.batch,), generator=g)
        return loss_on(model, index, 0.1, g, np.random.default_rng([design.seed, step]))

    def learn_styles(model: Any, step: int) -> Tensor:
        g = generator(design.seed + 100, step)
        chosen = trios[
            torch.randperm(len(trios), generator=g)[: design.batch // trios.shape[1]]
        ].flatten()
        return loss_on(model, chosen, 0.35, g, np.random.default_rng([design.seed + 100, step]))

    # First what things look like; then the same things in all styles side by side, so that only
    # style tells them apart.
    done = steps or design.steps
    model, seconds = train(
        name, model, learn_things, steps=done, lr=1.5e-3, work=work, weight_decay=0.1, ema=0.995
    )
    model, more = train(
        f"{name}-styles",
        model.requires_grad_(True),
        learn_styles,
        steps=done // 5,
        lr=5e-4,
        work=work,
        weight_decay=0.1,
        ema=0.99,
        warmup=50,
    )
    seconds += more

    # Measured is what was written, in half precision.
    save_half(model, folder / "open_clip_model.safetensors")
    facts = measure_clip(
        model, tokenizer, normalise, Pictures.load(data, (HELD_OUT_STYLE,)), pictures
    )
    facts |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training seconds (2 cores)": round(seconds),
    }
    write_card(folder, f"{name}: {TITLES[name]}", facts)
    print(json.dumps(facts), flush=True)


def several_positives(logits: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy of pictures over captions and of captions over pictures; (B, B) -> ().

    Every true partner counts alike.
    """
    by_picture = -(true / true.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
    by_caption = -(true / true.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0)
    return (by_picture.mean() + by_caption.mean()) / 2


class ClipNormalise:
    def __init__(self, config: Row):
        self.mean = torch.tensor(config["mean"]).view(3, 1, 1)
        self.std = torch.tensor(config["std"]).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


@torch.no_grad()
def measure_clip(
    model: Any, tokenizer: Any, normalise: "ClipNormalise", unseen: Pictures, seen: Pictures
) -> Row:
    """Recall@5 in a style never trained on, and how well the goal sentences tell 3D from flat."""
    image = torch.cat(
        [model.encode_image(normalise(part), normalize=True) for part in unseen.pixels.split(256)]
    )
    text = model.encode_text(
        tokenizer([f"an emoji of {row['thing']}" for row in unseen.rows]), normalize=True
    )

    # How many pictures are nearer to a text than its own, and the other way round.
    similarity = text @ image.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    rank_of_text = (similarity > similarity.diagonal()[None]).sum(0)

    # The demo's reward is this direction: from flat to 3D.
    goal, baseline = model.encode_text(
        tokenizer(["a glossy 3d emoji", "a flat icon"]), normalize=True
    )
    images = torch.cat(
        [model.encode_image(normalise(part), normalize=True) for part in seen.pixels.split(256)]
    )
    direction = images @ (goal - baseline)
    by_style = {
        kind: {
            row["thing"]: value
            for row, value in zip(seen.rows, direction, strict=True)
            if row["style"] == kind
        }
        for kind in ("3d", "flat")
    }
    solid, flat = (torch.stack(list(values.values())) for values in by_style.values())
    both = by_style["3d"].keys() & by_style["flat"].keys()
    pairs = [bool(by_style["3d"][thing] > by_style["flat"][thing]) for thing in both]
    return {
        "text-to-image recall@1, unseen style": round((rank < 1).float().mean().item(), 4),
        "text-to-image recall@5, unseen style": round((rank < 5).float().mean().item(), 4),
        "image-to-text recall@5, unseen style": round((rank_of_text < 5).float().mean().item(), 4),
        "P(3d goal prefers a 3d picture to a flat one)": round(
            (solid[:, None] > flat[None]).float().mean().item(), 4
        ),
        "P(the same, both of one thing)": round(sum(pairs) / len(pairs), 4),
        "things": len(unseen.rows),
    }
