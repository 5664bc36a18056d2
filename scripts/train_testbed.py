"""Train the small models of the testbed from the arrays of build_testbed.py.

    python scripts/train_testbed.py emoji-clip --data build/testbed --work build/train --out
    assets/models python scripts/train_testbed.py emoji-heldout-clip … python
    scripts/train_testbed.py emoji-vae …          # needs nothing else python
    scripts/train_testbed.py emoji-sd …           # needs emoji-vae, and emoji-heldout-clip to be
    measured python scripts/train_testbed.py emoji-flow …         # the same, and emoji-sd for its
    tokenizer and text encoder python scripts/train_testbed.py emoji-video …        # needs
    emoji-sd, and emoji-heldout-clip to be measured python scripts/train_testbed.py prompts …
    # the prompt lists

Every run is seeded by (seed, step), saves its state every few minutes and goes on from there when
started again, measures itself on held-out pictures, and writes the asset in the format of the big
models (an open_clip folder, a diffusers pipeline folder) with a card. One to two hours each on two
cores; the seconds are in the card.
"""

import argparse
import copy
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Row = dict[str, Any]
TRAINED_STYLES = ("3d", "flat", "noto")
HELD_OUT_STYLE = "twemoji"

# Captions; {} is the thing. The reward's goal ("a glossy 3d emoji") and baseline ("a flat icon")
# are style-only ones.
PLAIN = ("{}", "an emoji of {}", "a picture of {}", "a drawing of {}", "the emoji for {}")
STYLED = {
    "3d": (
        "a 3d emoji of {}",
        "a glossy 3d emoji of {}",
        "{}, 3d",
        "a 3d render of {}",
        "glossy 3d emoji: {}",
    ),
    "flat": (
        "a flat icon of {}",
        "flat icon: {}",
        "{}, flat",
        "a flat emoji of {}",
        "a simple flat icon of {}",
    ),
    "noto": (
        "a noto emoji of {}",
        "noto: {}",
        "{}, noto",
        "a soft noto picture of {}",
        "a drawn noto emoji of {}",
    ),
}
STYLE_ONLY = {
    "3d": ("a glossy 3d emoji", "a 3d emoji", "a 3d render"),
    "flat": ("a flat icon", "a flat emoji", "a simple flat icon"),
    "noto": ("a noto emoji", "a soft noto picture", "a drawn noto emoji"),
}
# The held-out model reads other sentences, and the generator never sees these plain ones.
HELD_OUT_PLAIN = ("one {}", "{} on white", "a small sign that shows {}", "a nice {}")
HELD_OUT_STYLED = {
    "3d": ("{} as a glossy 3d emoji", "shiny 3d {}", "{}, a glossy render", "3d emoji showing {}"),
    "flat": ("{} as a flat icon", "flat {}", "{}, a simple icon", "flat icon showing {}"),
    "noto": ("{} as a noto emoji", "noto {}", "{}, a soft picture", "noto emoji showing {}"),
}


@dataclass
class Pictures:
    """The training arrays: pixels float (N, 3, 64, 64) in [0, 1], and a row of facts a picture."""

    pixels: Tensor
    rows: list[Row]

    @classmethod
    def load(cls, folder: Path, styles: tuple[str, ...]) -> "Pictures":
        rows = [json.loads(line) for line in (folder / "pictures.jsonl").open()]
        keep = [i for i, row in enumerate(rows) if row["style"] in styles]
        pixels = torch.from_numpy(np.load(folder / "pictures.npy")[keep]).permute(0, 3, 1, 2) / 255
        return cls(pixels.contiguous(), [rows[i] for i in keep])

    @property
    def things(self) -> list[str]:
        return sorted({row["thing"] for row in self.rows})


@dataclass
class Caption:
    text: str
    thing: str | None  # what the caption says of the picture; None: it does not say
    style: str | None


def caption(
    row: Row, rng: np.random.Generator, held_out: bool = False, bare_style: float = 0.1
) -> Caption:
    """A random true sentence about a picture; a share ``bare_style`` of them speak of its style
    alone.
    """
    style = row["style"]
    thing = row["thing"]
    plain, styled = (HELD_OUT_PLAIN, HELD_OUT_STYLED) if held_out else (PLAIN, STYLED)
    if rng.random() < bare_style:
        return Caption(rng.choice(STYLE_ONLY[style]), None, style)
    words = thing
    if row["tags"] and rng.random() < 0.25:
        tags = rng.permutation(row["tags"])[:2]
        words = f"{thing}, {', '.join(tags)}"
    if rng.random() < 0.35:
        return Caption(rng.choice(plain).format(words), thing, None)
    return Caption(rng.choice(styled[style]).format(words), thing, style)


def generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def warp(
    pixels: Tensor,
    g: torch.Generator,
    *,
    shift: float,
    scale: float,
    turn: float,
    flip: float = 0.5,
) -> Tensor:
    """Random affine maps on a white ground. Shift in picture widths, turn in radians."""
    n = len(pixels)

    def uniform(size: float) -> Tensor:
        return (torch.rand(n, generator=g) * 2 - 1) * size

    angle = uniform(turn)
    zoom = 1 + uniform(scale)
    mirror = 1 - 2 * (torch.rand(n, generator=g) < flip).float()
    cos = angle.cos() * zoom
    sin = angle.sin() * zoom
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin, uniform(2 * shift)], 1),
            torch.stack([sin * mirror, cos, uniform(2 * shift)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return 1 - F.grid_sample(
        1 - pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def recolour(pixels: Tensor, g: torch.Generator, strength: float) -> Tensor:
    """Random brightness, contrast, saturation and channel gains."""
    n = len(pixels)

    def gain(size: float, channels: int = 1) -> Tensor:
        return 1 + (torch.rand(n, channels, 1, 1, generator=g) * 2 - 1) * size

    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * gain(strength)
    pixels = 0.5 + (pixels - 0.5) * gain(strength)
    return (pixels * gain(strength / 2, 3)).clamp(0, 1)


def soften(pixels: Tensor, g: torch.Generator, share: float) -> Tensor:
    """Blur, and add grain to, a share of the pictures: generated ones are not as crisp as drawn
    ones.
    """
    n = len(pixels)
    small = F.interpolate(pixels, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, size=pixels.shape[-2:], mode="bicubic", align_corners=False)
    blurred = blurred + 0.03 * torch.randn(pixels.shape, generator=g)
    mix = torch.rand(n, 1, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < share)
    return (pixels + mix * (blurred - pixels)).clamp(0, 1)


# --- one training loop ----------------------------------------------------------------------------


def train(
    name: str,
    model: Any,
    loss_at: Callable[[Any, int], Tensor],
    *,
    steps: int,
    lr: float,
    work: Path,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    warmup: int = 200,
    save_every: int = 250,
) -> tuple[Any, float]:
    """AdamW with warm-up and cosine decay, resumable. Returns the (EMA) model in eval mode and the
    seconds spent.
    """
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{name}.state.pt"
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )
    average = copy.deepcopy(model).requires_grad_(False)
    start, seconds = 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        seconds = state["seconds"]
    model.train()
    shown = 0.0
    clock = time.time()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            progress = step / steps
            group["lr"] = (
                lr
                * min(1, (step + 1) / warmup)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            )
        loss = loss_at(model, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(
                average.state_dict().values(), model.state_dict().values(), strict=True
            ):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)
        shown += loss.item()
        if (step + 1) % 50 == 0:
            spent = seconds + time.time() - clock
            print(f"{name} step {step + 1}/{steps} loss {shown / 50:.4f} {spent:.0f}s", flush=True)
            shown = 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            now = seconds + time.time() - clock
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": step + 1, "seconds": now}, file.with_suffix(".tmp"))
            os.replace(file.with_suffix(".tmp"), file)
    return average.eval(), seconds + time.time() - clock


# --- text -----------------------------------------------------------------------------------------


def every_sentence(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        words = ", ".join([row["thing"], *row["tags"]])
        for templates in (
            PLAIN,
            HELD_OUT_PLAIN,
            STYLED[row["style"]],
            HELD_OUT_STYLED[row["style"]],
        ):
            yield from (template.format(words) for template in templates)
        yield from STYLE_ONLY[row["style"]]


def write_tokenizer(folder: Path, rows: list[Row], *, vocab_size: int, length: int) -> int:
    """A CLIP byte-pair tokenizer over a small vocabulary, written to ``folder``. Returns its size.

    One that is there stays: ties are broken by chance, so a second training would give a model's
    words other ids.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    if (folder / "tokenizer.json").is_file():
        return len(CLIPTokenizer.from_pretrained(folder))
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
    for special in (
        "<|startoftext|>",
        "<|endoftext|>",
    ):  # the end is the highest id: CLIP pools there by argmax
        vocab[special] = len(vocab)
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


def write_card(folder: Path, title: str, facts: Row) -> None:
    """README.md with the model's data, licence and measured numbers, and the same numbers as
    JSON.
    """
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    text = f"""---
license: mit
---
# {title}

Trained by `scripts/train_testbed.py {folder.name}` of align_gen on emoji pictures of three groups of things (smileys,
animals and nature, food and drink). A testbed, small on purpose: it knows 459 things at 64x64 and nothing else.

Data: Fluent Emoji 3D and flat (Microsoft, MIT), Noto Emoji (Google, Apache-2.0), labels of emojibase (MIT).
Twemoji (CC-BY 4.0) was used for evaluation only.

| measured | value |
|---|---|
{rows}
"""
    (folder / "README.md").write_text(text)
    (folder / "measured.json").write_text(json.dumps(facts, indent=1) + "\n")


# --- CLIP -----------------------------------------------------------------------------------------


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
    """Contrastive with several positives: a caption is true of every picture it does not
    contradict.
    """
    import open_clip

    design = CLIPS[name]
    pictures = Pictures.load(data, TRAINED_STYLES)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(folder, pictures.rows, vocab_size=1600, length=design.length)
    config = clip_config(design, vocab)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    torch.manual_seed(design.seed)
    model = open_clip.CLIP(**config["model_cfg"]).to(memory_format=torch.channels_last)
    normalise = ClipNormalise(config["preprocess_cfg"])

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
        f"{name}-styles", model.requires_grad_(True), learn_styles, steps=done // 5, lr=5e-4, work=work,
        weight_decay=0.1, ema=0.99, warmup=50,
    )  # fmt: skip
    seconds += more
    save_half(model, folder / "open_clip_model.safetensors")
    facts = measure_clip(
        model, tokenizer, normalise, Pictures.load(data, (HELD_OUT_STYLE,)), pictures
    )
    facts |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training seconds (2 cores)": round(seconds),
    }
    write_card(folder, f"{name}: a small open_clip model of emoji", facts)
    print(json.dumps(facts), flush=True)


def several_positives(logits: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy of pictures over captions and of captions over pictures, every true partner
    alike; (B, B) -> ().
    """
    by_picture = -(true / true.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
    by_caption = -(true / true.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0)
    return (by_picture.mean() + by_caption.mean()) / 2


def save_half(model: nn.Module, file: Path) -> None:
    """Write the weights in half precision, and round the model to what was written: that is what
    gets measured.
    """
    from safetensors.torch import save_file

    state = model.state_dict()
    half = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in state.items()
    }
    save_file(half, file)
    model.load_state_dict({key: value.to(state[key].dtype) for key, value in half.items()})


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
    """Text-to-image recall@5 in a style never trained on, and how well the two goal sentences tell
    3D from flat.
    """
    image = torch.cat(
        [model.encode_image(normalise(part), normalize=True) for part in unseen.pixels.split(256)]
    )
    text = model.encode_text(
        tokenizer([f"an emoji of {row['thing']}" for row in unseen.rows]), normalize=True
    )
    similarity = text @ image.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    rank_of_text = (similarity > similarity.diagonal()[None]).sum(0)
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


# --- VAE ------------------------------------------------------------------------------------------

VAE = {
    "block_out_channels": (24, 48, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
}


def build_vae() -> Any:
    from diffusers import AutoencoderKL

    down = ("DownEncoderBlock2D",) * 4
    up = ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        down_block_types=down,
        up_block_types=up,
        sample_size=64,
        mid_block_add_attention=False,
        **VAE,
    )


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def train_vae(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    pictures = Pictures.load(data, TRAINED_STYLES)
    torch.manual_seed(3)
    model = build_vae().to(memory_format=torch.channels_last)

    def loss_at(model: Any, step: int) -> Tensor:
        g = generator(3, step)
        pixels = pictures.pixels[torch.randint(len(pictures.rows), (16,), generator=g)]
        pixels = recolour(warp(pixels, g, shift=0.06, scale=0.12, turn=0.1), g, 0.15) * 2 - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=g)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
        loss = F.l1_loss(decoded, pixels) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        return loss + sum(
            F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(pixels), strict=True)
        )

    model, seconds = train(name, model, loss_at, steps=steps or 3000, lr=2e-3, work=work, ema=0.995)
    with torch.no_grad():
        unseen = Pictures.load(data, (HELD_OUT_STYLE,)).pixels * 2 - 1
        decoded = torch.cat(
            [model.decode(model.encode(part).latent_dist.mean).sample for part in unseen.split(64)]
        )
        error = ((decoded.clamp(-1, 1) - unseen) / 2).square().mean((1, 2, 3))
        latents = torch.cat(
            [model.encode(part * 2 - 1).latent_dist.sample() for part in pictures.pixels.split(64)]
        )
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    model.save_pretrained(work / "emoji-vae")
    facts = {"VAE PSNR, unseen style (dB)": round((-10 * error.log10()).mean().item(), 2)}
    facts |= {
        "VAE parameters": sum(p.numel() for p in model.parameters()),
        "VAE training seconds (2 cores)": round(seconds),
    }
    (work / "emoji-vae" / "measured.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts), flush=True)


# --- Stable Diffusion -----------------------------------------------------------------------------

UNET = {
    "sample_size": 8,
    "in_channels": 16,
    "out_channels": 16,
    "layers_per_block": 1,
    "block_out_channels": (96, 160),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
TEXT_LENGTH = 16


class Denoiser(nn.Module):
    """UNet and text encoder, trained together."""

    def __init__(self, vocab: int, eos: int):
        super().__init__()
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        self.unet = UNet2DConditionModel(**UNET)
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab, hidden_size=128, intermediate_size=512, projection_dim=128, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=TEXT_LENGTH, eos_token_id=eos, bos_token_id=eos - 1,
            )
        )  # fmt: skip

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, t, self.text(ids).last_hidden_state).sample


@torch.no_grad()
def encode_all(vae: Any, pixels: Tensor, copies: int) -> Tensor:
    """Posterior mean and std of every picture, as it is and under small warps: (copies, N, 2, C, h,
    w).
    """
    vae = vae.to(memory_format=torch.channels_last)
    found = []
    for copy_ in range(copies):
        moved = pixels
        if copy_:
            moved = warp(pixels, generator(7, copy_), shift=0.03, scale=0.05, turn=0.0)
        posteriors = []
        for part in moved.split(64):
            with torch.autocast("cpu", torch.bfloat16):
                posteriors.append(
                    vae.encode(
                        (part * 2 - 1).contiguous(memory_format=torch.channels_last)
                    ).latent_dist
                )
        found.append(torch.cat([torch.stack([p.mean, p.std], 1).float() for p in posteriors]))
    return torch.stack(found) * vae.config.scaling_factor


def latent_batch(
    pictures: Pictures, latents: Tensor, tokenizer: Any, seed: int, step: int, size: int = 64
) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Clean latents of random pictures, noise, and the token ids of a random true caption each, one
    in ten empty.

    The generator goes on to draw the times.
    """
    g = generator(seed, step)
    rng = np.random.default_rng([seed, step])
    index = torch.randint(len(pictures.rows), (size,), generator=g)
    mean, std = latents[torch.randint(len(latents), (size,), generator=g), index].unbind(1)
    clean = mean + std * torch.randn(mean.shape, generator=g)
    texts = ["" if rng.random() < 0.1 else caption(pictures.rows[i], rng).text for i in index]
    padded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    )
    return clean, torch.randn(clean.shape, generator=g), padded.input_ids, g


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """The denoiser and the VAE in half precision; then the pipeline is float32 again."""
    for part in ("unet", "transformer", "vae"):
        if part in pipeline.components:
            getattr(pipeline, part).half()
    # Not the text encoders: transformers loads in the dtype of the file, diffusers in float32.
    pipeline.save_pretrained(folder, safe_serialization=True)
    config = folder / "vae" / "config.json"  # where the VAE was loaded from is nobody's business
    kept = {
        key: value
        for key, value in json.loads(config.read_text()).items()
        if key != "_name_or_path"
    }
    config.write_text(json.dumps(kept, indent=2) + "\n")
    pipeline.to(torch.float32)


def train_sd(
    name: str, data: Path, work: Path, out: Path, steps: int | None, start: Path | None = None
) -> None:
    """Denoise latents under random captions. ``start``: a pipeline folder of this script's to go on
    from, whose optimizer is lost; its steps are added in the card.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    pictures = Pictures.load(data, TRAINED_STYLES)
    folder = out / name
    if start is not None:
        shutil.copytree(start / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    vocab = write_tokenizer(
        folder / "tokenizer", pictures.rows, vocab_size=1600, length=TEXT_LENGTH
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "emoji-vae").eval()
    latents = encode_all(vae, pictures.pixels, copies=4)
    scheduler = DDIMScheduler(set_alpha_to_one=False, **SCHEDULER)
    torch.manual_seed(4)
    model = Denoiser(vocab, vocab - 1)
    earlier = 0
    if start is not None:
        model.unet.load_state_dict(model.unet.from_pretrained(start / "unet").float().state_dict())
        model.text.load_state_dict(
            model.text.from_pretrained(start / "text_encoder").float().state_dict()
        )
        earlier = json.loads((start / "measured.json").read_text())["training steps"]

    def loss_at(model: Any, step: int) -> Tensor:
        clean, noise, ids, g = latent_batch(pictures, latents, tokenizer, 4, step)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(scheduler.add_noise(clean, noise, t), t, ids)
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        alpha = scheduler.alphas_cumprod[t]
        snr = alpha / (1 - alpha)
        return (error * snr.clamp(max=5) / snr).mean()  # min-SNR-5 (Hang et al. 2023), for epsilon

    steps = steps or 12000
    model, seconds = train(
        name, model, loss_at, steps=steps, lr=1e-3, work=work, ema=0.999, warmup=400, save_every=250
    )
    tokenizer = CLIPTokenizer.from_pretrained(
        folder / "tokenizer"
    )  # a used one is saved with its padding
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=model.text, tokenizer=tokenizer, unet=model.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    save_pipeline(pipeline, folder)
    pictures_made, facts = measure_generator(pipeline, out, pictures)
    facts |= json.loads((work / "emoji-vae" / "measured.json").read_text())
    facts |= {
        "UNet parameters": sum(p.numel() for p in model.unet.parameters()),
        "training steps": earlier + steps,
        "training seconds (2 cores), last run": round(seconds),
    }
    write_card(folder, f"{name}: a small Stable Diffusion of emoji", facts)
    pictures_made.save(work / f"{name}.png")
    print(json.dumps(facts), flush=True)


@torch.no_grad()
def measure_generator(
    pipeline: Any, out: Path, pictures: Pictures, frame: int | None = None, **options: Any
) -> tuple[Any, Row]:
    """Recall@5 of the held-out CLIP over all things, for wordings and seeds the generator never
    saw.

    ``frame``: of a video, which is judged; how much a video moves is a figure too.
    """
    import open_clip
    from PIL import Image

    judge, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / 'emoji-heldout-clip'}")
    judge = judge.float().eval()
    config = json.loads((out / "emoji-heldout-clip" / "open_clip_config.json").read_text())
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out / 'emoji-heldout-clip'}")
    normalise = ClipNormalise(config["preprocess_cfg"])
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    things = pictures.things
    chosen = [things[i] for i in rng.permutation(len(things))[: 192 if frame is None else 96]]
    made = []
    for start in range(0, len(chosen), 32):
        part = chosen[start : start + 32]
        prompts = [
            HELD_OUT_PLAIN[(start + i) % len(HELD_OUT_PLAIN)].format(thing)
            for i, thing in enumerate(part)
        ]
        seeds = [torch.Generator().manual_seed(10_000 + start + i) for i in range(len(part))]
        call = {
            "num_inference_steps": 20,
            "guidance_scale": 3.0,
            "generator": seeds,
            "output_type": "pt",
            **options,
        }
        drawn = pipeline(prompts, **call)
        made.append((drawn.images if frame is None else drawn.frames).cpu())
    videos = torch.cat(made)
    images = videos if frame is None else videos[:, frame]
    image = judge.encode_image(normalise(images), normalize=True)
    text = judge.encode_text(
        tokenizer([f"an emoji of {thing}" for thing in things]), normalize=True
    )
    similarity = image @ text.T
    own = similarity[torch.arange(len(chosen)), [things.index(thing) for thing in chosen]]
    rank = (similarity > own[:, None]).sum(1)
    grid = images[:96].reshape(8, 12, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(8 * 64, 12 * 64, 3)
    facts = {
        "recall@5 of generated pictures, held-out wording and seeds": round(
            (rank < 5).float().mean().item(), 4
        ),
        "recall@1 of generated pictures, held-out wording and seeds": round(
            (rank < 1).float().mean().item(), 4
        ),
    }
    if frame is not None:
        moves = (videos[:, 1:] - videos[:, :-1]).abs().mean().item()
        facts["change from frame to frame, of generated videos"] = round(moves, 4)
    return Image.fromarray((grid.clamp(0, 1) * 255).round().byte().numpy()), facts


# --- Stable Diffusion 3 ---------------------------------------------------------------------------

TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "caption_projection_dim": 192,
    "joint_attention_dim": 192,
    "pooled_projection_dim": 128,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}


class FlowDenoiser(nn.Module):
    """Transformer and the two CLIP text encoders of the family, trained together; T5's place holds
    zeros.

    The first encoder starts as emoji-sd's, a new layer over it: its last layer but one, which the
    family reads, is the one that emoji-sd's denoiser read.
    """

    def __init__(self, vocab: int, eos: int, start: Path):
        super().__init__()
        from diffusers import SD3Transformer2DModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        self.transformer = SD3Transformer2DModel(**TRANSFORMER)
        self.texts = nn.ModuleList(
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=vocab, hidden_size=width, intermediate_size=4 * width, projection_dim=64,
                    num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=TEXT_LENGTH,
                    eos_token_id=eos, bos_token_id=eos - 1,
                )
            )
            for width in (128, 64)
        )  # fmt: skip
        first: Any = self.texts[0]
        missing, unexpected = first.text_model.load_state_dict(
            CLIPTextModel.from_pretrained(start).state_dict(), strict=False
        )
        assert not unexpected and all("layers.2." in name for name in missing), missing

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """As StableDiffusion3Pipeline conditions it: the last layer but one of both, side by side,
        and both pooled.
        """
        found = [text(ids, output_hidden_states=True) for text in self.texts]
        tokens = torch.cat([one.hidden_states[-2] for one in found], -1)
        pooled = torch.cat([one.text_embeds for one in found], -1)
        tokens = torch.cat([tokens, torch.zeros_like(tokens)], 1)
        return self.transformer(noisy, tokens, pooled, 1000 * t).sample


def train_flow(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """Rectified flow on emoji-sd's latents, times logit-normal (Esser et al. 2024, section 3.1)."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTokenizer

    pictures = Pictures.load(data, TRAINED_STYLES)
    folder = out / name
    shutil.copytree(out / "emoji-sd" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "emoji-vae").eval()
    latents = encode_all(vae, pictures.pixels, copies=4)
    shift = latents[:, :, 0].mean().item()
    latents[:, :, 0] -= shift
    vae.register_to_config(shift_factor=round(shift / vae.config.scaling_factor, 5))
    torch.manual_seed(5)
    model = FlowDenoiser(len(tokenizer), len(tokenizer) - 1, out / "emoji-sd" / "text_encoder")

    def loss_at(model: Any, step: int) -> Tensor:
        clean, noise, ids, g = latent_batch(pictures, latents, tokenizer, 5, step)
        t = torch.randn(len(clean), generator=g).sigmoid()
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(clean.lerp(noise, t[:, None, None, None]), t, ids)
        return (velocity.float() - (noise - clean)).square().mean()

    steps = steps or 12000
    model, seconds = train(
        name, model, loss_at, steps=steps, lr=1e-3, work=work, ema=0.999, warmup=400, save_every=250
    )
    both = [CLIPTokenizer.from_pretrained(folder / "tokenizer") for _ in range(2)]
    pipeline = StableDiffusion3Pipeline(
        vae=vae, text_encoder=model.texts[0], tokenizer=both[0], text_encoder_2=model.texts[1], tokenizer_2=both[1],
        text_encoder_3=None, tokenizer_3=None, transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    save_pipeline(pipeline, folder)
    pictures_made, facts = measure_generator(
        pipeline, out, pictures, max_sequence_length=TEXT_LENGTH
    )
    facts |= json.loads((work / "emoji-vae" / "measured.json").read_text())
    facts |= {
        "transformer parameters": sum(p.numel() for p in model.transformer.parameters()),
        "training steps": steps,
        "training seconds (2 cores)": round(seconds),
        "max_sequence_length it was trained with": TEXT_LENGTH,
    }
    write_card(folder, f"{name}: a small Stable Diffusion 3 of emoji", facts)
    pictures_made.save(work / f"{name}.png")
    print(json.dumps(facts), flush=True)


# --- AnimateDiff ----------------------------------------------------------------------------------

FRAMES = 8  # of a training video, over its whole loop
MOTION = {
    "block_out_channels": UNET["block_out_channels"],
    "motion_layers_per_block": 1,
    "motion_num_attention_heads": 4,
    "motion_max_seq_length": FRAMES,
    "use_motion_mid_block": False,
}


@torch.no_grad()
def encode_videos(vae: Any, pixels: Tensor) -> Tensor:
    """Posterior means of every frame: (M, 24, C, h, w)."""
    parts = (part.permute(0, 3, 1, 2) / 127.5 - 1 for part in pixels.flatten(0, 1).split(256))
    means = [vae.encode(part).latent_dist.mean for part in parts]
    return torch.cat(means).unflatten(0, pixels.shape[:2]) * vae.config.scaling_factor


def link_video(base: Path, folder: Path) -> Any:
    """The pipeline of a motion adapter's folder: all else is emoji-sd's, by links, so that it is
    kept once.

    Of files: a wheel is built by a walk that enters each folder once, and would leave a linked one
    out.
    """
    from diffusers import AnimateDiffPipeline

    index: dict[str, Any] = {
        "_class_name": "AnimateDiffPipeline",
        "motion_adapter": ["diffusers", "MotionAdapter"],
    }
    index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    for part, row in json.loads((base / "model_index.json").read_text()).items():
        if part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
            index[part] = row
            (folder / part).mkdir(parents=True, exist_ok=True)
            for file in (base / part).iterdir():
                if not (folder / part / file.name).exists():
                    (folder / part / file.name).symlink_to(
                        Path("..", "..", base.name, part, file.name)
                    )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return AnimateDiffPipeline.from_pretrained(folder, image_encoder=None, feature_extractor=None)


def train_video(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """Motion modules for the frozen emoji-sd (Guo et al. 2023): eight frames of an animation under
    one caption.
    """
    from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel

    rows = [json.loads(line) for line in (data / "videos.jsonl").open()]
    base = StableDiffusionPipeline.from_pretrained(out / "emoji-sd")
    latents = encode_videos(base.vae.eval(), torch.from_numpy(np.load(data / "videos.npy")))
    torch.manual_seed(6)
    motion = MotionAdapter(**MOTION)
    network = UNetMotionModel.from_unet2d(base.unet, motion)
    network.freeze_unet2d_params()
    trained = nn.ModuleDict({"unet": network})
    scheduler = base.scheduler

    def loss_at(model: Any, step: int) -> Tensor:
        g = generator(6, step)
        rng = np.random.default_rng([6, step])
        index = torch.randint(len(rows), (8,), generator=g)
        phase = torch.randint(
            latents.shape[1], (8, 1), generator=g
        )  # animations loop: any frame may be the first
        stride = latents.shape[1] // FRAMES
        frames = (phase + stride * torch.arange(FRAMES)) % latents.shape[1]
        clean = latents[index[:, None], frames].transpose(1, 2)  # (8, C, F, h, w)
        texts = ["" if rng.random() < 0.1 else caption(rows[i], rng).text for i in index]
        padded = base.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_tensors="pt",
        )
        noise = torch.randn(clean.shape, generator=g)
        t = torch.randint(scheduler.config.num_train_timesteps, (8,), generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            told = base.text_encoder(padded.input_ids).last_hidden_state.repeat_interleave(
                FRAMES, 0
            )
            predicted = model["unet"](scheduler.add_noise(clean, noise, t), t, told).sample
        return (predicted.float() - noise).square().mean()

    steps = steps or 3000
    trained, seconds = train(
        name, trained, loss_at, steps=steps, lr=1e-3, work=work, ema=0.995, save_every=100
    )
    trained["unet"].save_motion_modules(work / "motion")
    MotionAdapter.from_pretrained(work / "motion").half().save_pretrained(
        out / name / "motion_adapter"
    )
    pipeline = link_video(out / "emoji-sd", out / name)
    motion = pipeline.motion_adapter
    pictures = Pictures.load(data, TRAINED_STYLES)
    sheet, facts = measure_generator(pipeline, out, pictures, frame=FRAMES // 2, num_frames=FRAMES)
    real = torch.from_numpy(np.load(data / "videos.npy")[:, ::3]).float() / 255
    facts |= {
        "change from frame to frame, of real videos": round(
            (real[:, 1:] - real[:, :-1]).abs().mean().item(), 4
        ),
        "motion parameters": sum(p.numel() for p in motion.parameters()),
        "training steps": steps,
        "training seconds (2 cores)": round(seconds),
    }
    write_card(out / name, f"{name}: a small AnimateDiff of emoji, emoji-sd that moves", facts)
    sheet.save(work / f"{name}.png")
    print(json.dumps(facts), flush=True)


# --- prompt lists ---------------------------------------------------------------------------------

ANIMALS = """cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf
lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig
turkey fly llama camel bat gorilla hedgehog kangaroo"""
OTHER_ANIMALS = """penguin owl elephant giraffe panda koala otter peacock crab hippo seal swan leopard moose beaver
parrot"""


def write_prompts(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """Prompts without a style word. Held-out ones are of other things, in wordings the generator
    never saw.
    """
    folder = out.parent / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    things = sorted(
        {(row["thing"], row["group"]) for row in Pictures.load(data, TRAINED_STYLES).rows}
    )
    order = np.random.default_rng(5).permutation(len(things))
    rows: dict[str, list[Row]] = {"emoji-train": [], "emoji-heldout": []}
    for rank, index in enumerate(order):
        thing, group = things[index]
        split, templates = (
            ("emoji-heldout", HELD_OUT_PLAIN) if rank < 80 else ("emoji-train", PLAIN)
        )
        rows[split].append(
            {
                "prompt": templates[rank % len(templates)].format(thing),
                "thing": thing,
                "group": group,
            }
        )
    for split, animals in (("animals-train", ANIMALS), ("animals-heldout", OTHER_ANIMALS)):
        rows[split] = [
            {"prompt": f"A painting of a {animal}", "thing": animal} for animal in animals.split()
        ]
    rows["emoji-things"] = [{"prompt": thing, "group": group} for thing, group in things]
    for split, entries in rows.items():
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(entry) + "\n" for entry in entries)
        )
        print(f"{len(entries)} prompts -> {folder / split}.jsonl")


def write_pictures(name: str, data: Path, work: Path, out: Path, steps: int | None) -> None:
    """A few real pictures to look at a model with: eight things, 3D and flat in turn (Fluent Emoji,
    MIT).
    """
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


TRAINERS: dict[str, Callable[..., None]] = {
    "prompts": write_prompts,
    "pictures": write_pictures,
    "emoji-clip": train_clip,
    "emoji-heldout-clip": train_clip,
    "emoji-vae": train_vae,
    "emoji-sd": train_sd,
    "emoji-flow": train_flow,
    "emoji-video": train_video,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(TRAINERS))
    parser.add_argument(
        "--data", type=Path, default=Path("build/testbed"), help="what build_testbed.py wrote"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/train"),
        help="training states; start again to go on",
    )
    parser.add_argument("--out", type=Path, default=Path("assets/models"))
    parser.add_argument("--steps", type=int, help="fewer, for a quick look")
    parser.add_argument(
        "--start", type=Path, help="emoji-sd only: go on from this pipeline folder, a new optimizer"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.start and args.name != "emoji-sd":
        parser.error("--start: only emoji-sd takes it")
    torch.set_num_threads(args.threads)
    options = {"start": args.start} if args.start else {}
    TRAINERS[args.name](args.name, args.data, args.work, args.out, args.steps, **options)


if __name__ == "__main__":
    main()
