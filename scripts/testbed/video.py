"""AnimateDiff: a motion module on the frozen picture generator."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .captions import TRAINED_STYLES, caption
from .generators import TEXT_LENGTH, UNET, measure_generator
from .loop import generator, train, write_card
from .pictures import Pictures

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
    """The pipeline of a motion adapter's folder; all else is emoji-sd's, by links: stored once.

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
    """Train motion modules for the frozen emoji-sd (Guo et al. 2023), eight frames a caption."""
    from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel

    rows = [json.loads(line) for line in (data / "videos.jsonl").open()]
    base = StableDiffusionPipeline.from_pretrained(out / "emoji-sd")
    latents = encode_videos(base.vae.eval(), torch.from_numpy(np.load(data / "videos.npy")))
    torch.manual_seed(6)

    # The picture model is frozen: only what moves is learned, and written.
    motion = MotionAdapter(**MOTION)
    network = UNetMotionModel.from_unet2d(base.unet, motion)
    network.freeze_unet2d_params()
    trained = nn.ModuleDict({"unet": network})
    scheduler = base.scheduler

    def loss_at(model: Any, step: int) -> Tensor:
        g = generator(6, step)
        rng = np.random.default_rng([6, step])
        index = torch.randint(len(rows), (8,), generator=g)
        # Animations loop: any frame may be the first.
        phase = torch.randint(latents.shape[1], (8, 1), generator=g)
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
            states = base.text_encoder(padded.input_ids).last_hidden_state
            states = states.repeat_interleave(FRAMES, 0)
            predicted = model["unet"](scheduler.add_noise(clean, noise, t), t, states).sample
        return (predicted.float() - noise).square().mean()

    steps = steps or 3000
    trained, seconds = train(
        name, trained, loss_at, steps=steps, lr=1e-3, work=work, ema=0.995, save_every=100
    )

    # Measured is what a reader of the folder gets, in half precision.
    trained["unet"].save_motion_modules(work / "motion")
    MotionAdapter.from_pretrained(work / "motion").half().save_pretrained(
        out / name / "motion_adapter"
    )
    pipeline = link_video(out / "emoji-sd", out / name)
    motion = pipeline.motion_adapter
    pictures = Pictures.load(data, TRAINED_STYLES)
    sheet, facts = measure_generator(pipeline, out, pictures, frame=FRAMES // 2, num_frames=FRAMES)

    # Real animations at the same frame rate, to compare the movement with.
    real = torch.from_numpy(np.load(data / "videos.npy")[:, ::3]).float() / 255
    facts |= {
        "change from frame to frame, of real videos": round(
            (real[:, 1:] - real[:, :-1]).abs().mean().item(), 4
        ),
        "motion parameters": sum(p.numel() for p in motion.parameters()),
        "training steps": steps,
        "training seconds (2 cores)": round(seconds),
    }
    title = f"{name}: a small AnimateDiff, emoji-sd that moves, that draws short videos of emoji"
    write_card(out / name, title, facts)
    sheet.save(work / f"{name}.png")
    print(json.dumps(facts), flush=True)
