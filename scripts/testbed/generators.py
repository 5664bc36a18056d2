"""The picture generators: a Stable Diffusion, and a Stable Diffusion 3."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .captions import HELD_OUT_PLAIN, TRAINED_STYLES, Row, caption
from .clip import ClipNormalise, write_tokenizer
from .loop import generator, train, write_card
from .pictures import Pictures, warp

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
                vocab_size=vocab,
                hidden_size=128,
                intermediate_size=512,
                projection_dim=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TEXT_LENGTH,
                eos_token_id=eos,
                bos_token_id=eos - 1,
            )
        )

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, t, self.text(ids).last_hidden_state).sample


@torch.no_grad()
def encode_all(vae: Any, pixels: Tensor, copies: int) -> Tensor:
    """Posterior mean and std of every picture as it is and under small warps.

    Returns (copies, N, 2, C, h, w).
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
    """Clean latents of random pictures, noise, and the token ids of a random true caption each.

    One caption in ten is empty. The generator goes on to draw the times.
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
    entries = {
        key: value
        for key, value in json.loads(config.read_text()).items()
        if key != "_name_or_path"
    }
    config.write_text(json.dumps(entries, indent=2) + "\n")
    pipeline.to(torch.float32)


def train_sd(
    name: str, data: Path, work: Path, out: Path, steps: int | None, start: Path | None = None
) -> None:
    """Denoise latents under random captions.

    Args:
        start: a pipeline folder of this script's to go on from; its optimizer is lost, its steps
            are added in the card.
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

    # Latents are computed once: the VAE is frozen.
    vae = AutoencoderKL.from_pretrained(work / "emoji-vae").eval()
    latents = encode_all(vae, pictures.pixels, copies=4)
    scheduler = DDIMScheduler(set_alpha_to_one=False, **SCHEDULER)
    torch.manual_seed(4)
    model = Denoiser(vocab, vocab - 1)

    # A model to go on from brings its weights, not its optimizer.
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
    # A used tokenizer would be saved with its padding.
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=model.text, tokenizer=tokenizer, unet=model.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip

    # Measured is the pipeline as it was written, in half precision.
    save_pipeline(pipeline, folder)
    pictures_made, facts = measure_generator(pipeline, out, pictures)
    facts |= json.loads((work / "emoji-vae" / "measured.json").read_text())
    facts |= {
        "UNet parameters": sum(p.numel() for p in model.unet.parameters()),
        "training steps": earlier + steps,
        "training seconds (2 cores), last run": round(seconds),
    }
    write_card(folder, f"{name}: a small Stable Diffusion that draws emoji", facts)
    pictures_made.save(work / f"{name}.png")
    print(json.dumps(facts), flush=True)


@torch.no_grad()
def measure_generator(
    pipeline: Any, out: Path, pictures: Pictures, frame: int | None = None, **options: Any
) -> tuple[Any, Row]:
    """Recall@5 of the held-out CLIP over all things, for wordings and seeds of their own.

    ``frame``: of a video, the one that is looked at; how much a video moves is a figure too.
    """
    import open_clip
    from PIL import Image

    reader, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / 'emoji-heldout-clip'}")
    reader = reader.float().eval()
    config = json.loads((out / "emoji-heldout-clip" / "open_clip_config.json").read_text())
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out / 'emoji-heldout-clip'}")
    normalise = ClipNormalise(config["preprocess_cfg"])
    pipeline.set_progress_bar_config(disable=True)

    # Things, wordings and seeds that no training step used.
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

    # How many things are nearer to the picture than the one that was asked for.
    image = reader.encode_image(normalise(images), normalize=True)
    text = reader.encode_text(
        tokenizer([f"an emoji of {thing}" for thing in things]), normalize=True
    )
    similarity = image @ text.T
    own = similarity[torch.arange(len(chosen)), [things.index(thing) for thing in chosen]]
    rank = (similarity > own[:, None]).sum(1)

    # A sheet of 8 x 12 pictures, to look at.
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
    """Transformer and the family's two CLIP text encoders, trained together.

    T5's place holds zeros. The first encoder starts as emoji-sd's, a new layer over it: its last
    layer but one, which the family reads, is the one that emoji-sd's denoiser read.
    """

    def __init__(self, vocab: int, eos: int, start: Path):
        super().__init__()
        from diffusers import SD3Transformer2DModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        self.transformer = SD3Transformer2DModel(**TRANSFORMER)
        self.texts = nn.ModuleList(
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=vocab,
                    hidden_size=width,
                    intermediate_size=4 * width,
                    projection_dim=64,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    max_position_embeddings=TEXT_LENGTH,
                    eos_token_id=eos,
                    bos_token_id=eos - 1,
                )
            )
            for width in (128, 64)
        )
        first: Any = self.texts[0]
        missing, unexpected = first.text_model.load_state_dict(
            CLIPTextModel.from_pretrained(start).state_dict(), strict=False
        )
        assert not unexpected and all("layers.2." in name for name in missing), missing

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Velocity, conditioned as by StableDiffusion3Pipeline.

        On the last layer but one of both encoders, side by side, and on both pooled texts.
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

    # The family's latents have mean 0, by a number in the VAE's configuration.
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

    # Used tokenizers would be saved with their padding.
    both = [CLIPTokenizer.from_pretrained(folder / "tokenizer") for _ in range(2)]
    pipeline = StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=model.texts[0],
        tokenizer=both[0],
        text_encoder_2=model.texts[1],
        tokenizer_2=both[1],
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
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
    write_card(folder, f"{name}: a small Stable Diffusion 3 that draws emoji", facts)
    pictures_made.save(work / f"{name}.png")
    print(json.dumps(facts), flush=True)
