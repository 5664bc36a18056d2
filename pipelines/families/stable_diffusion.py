"""Stable Diffusion 1.x and 2.x: one text encoder, a U-Net, a VAE of single pictures.

The U-Net predicts epsilon or v.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..pretrained import Pretrained
from ..schedules import ddim_process, ddim_times


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
