"""Pictures of a tiny Stable Diffusion from fixed latents: by our adapter, and by diffusers."""

import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor

from align_gen.pipelines import Model, sample

PROMPTS = ["a red cat", "two dogs"]
LATENTS = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(0))


def pictures(model: Model) -> Tensor:
    return sample(
        model,
        model.encode_prompts(PROMPTS),
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=LATENTS,
    )


def diffusers_pictures(pipeline: StableDiffusionPipeline) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    made: Tensor = pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=3.0, latents=LATENTS, output_type="pt"
    ).images
    return made
