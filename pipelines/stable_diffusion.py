"""Stable Diffusion 1.x and 2.x: one text encoder, an epsilon- or v-prediction UNet, a per-image VAE."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .pretrained import Pretrained
from .process import Diffusion


def ddim(scheduler: Any) -> DDIMScheduler:
    """DDIM on the pipeline's own noise schedule, spacing and offset, whatever sampler it came with.

    Latent models do not clip samples; DDIM's default would, where the pipeline's own scheduler has no such option.
    """
    options = {} if "clip_sample" in scheduler.config else {"clip_sample": False}
    made: DDIMScheduler = DDIMScheduler.from_config(scheduler.config, **options)
    if made.config.thresholding:
        raise ValueError("scheduler: dynamic thresholding is not supported")
    return made


def ddim_process(scheduler: Any) -> Diffusion:
    """The noise process of a pipeline's scheduler; abar is its own tensor."""
    own = ddim(scheduler)
    return Diffusion(
        own.alphas_cumprod,
        float(own.final_alpha_cumprod),
        own.config.prediction_type,
        own.config.clip_sample_range if own.config.clip_sample else None,
    )


def ddim_times(scheduler: Any, num_inference_steps: int) -> Tensor:
    """(t, s) of every step, (n, 2). DDIM goes by a constant stride, not to the next grid point."""
    own = ddim(scheduler)
    own.set_timesteps(num_inference_steps)
    t = own.timesteps.double()
    return torch.stack([t, t - own.config.num_train_timesteps // num_inference_steps], 1)


class StableDiffusion(Pretrained):
    """Adapter of ``diffusers.StableDiffusionPipeline``; trains the UNet."""

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"unet": pipeline.unet}
        self.process = ddim_process(pipeline.scheduler)
        latent = pipeline.unet.config.sample_size
        height, width = (latent, latent) if isinstance(latent, int) else latent
        self.default_size = (height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor)

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        return ddim_times(self.pipeline.scheduler, num_inference_steps)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _ = self.pipeline.encode_prompt(list(texts), self.device, 1, False)
        return {"prompt_embeds": embeds}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.trainable["unet"](
            x, t, encoder_hidden_states=tensors["prompt_embeds"], return_dict=False
        )[0]
        return output
