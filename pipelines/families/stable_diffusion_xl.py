"""Stable Diffusion XL: two text encoders, their pooled output, sizes as a condition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..pretrained import Pretrained
from ..schedules import ddim_process, ddim_times


class StableDiffusionXL(Pretrained):
    """Adapter of ``diffusers.StableDiffusionXLPipeline``; trains the UNet."""

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"unet": pipeline.unet}
        self.process = ddim_process(pipeline.scheduler)
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)
        if pipeline.config.force_zeros_for_empty_prompt:
            self.default_negative = None
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            # This VAE overflows in half precision.
            pipeline.vae.float()

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        return ddim_times(self.pipeline.scheduler, num_inference_steps)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(texts), None, self.device, 1, False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        """The picture's original size, where it was cropped, and its size now: uncropped."""
        super().inputs(count, height, width, num_frames, **inputs)
        numbers = [height, width, 0, 0, height, width]
        sizes = torch.tensor(numbers, dtype=torch.float32, device=self.device)
        return {"time_ids": sizes.expand(count, -1)}

    def latent_statistics(self) -> tuple[Any, Any]:
        config = self.pipeline.vae.config
        mean = getattr(config, "latents_mean", None)
        std = getattr(config, "latents_std", None)
        if mean is None or std is None:
            return super().latent_statistics()
        mean = torch.tensor(mean, device=self.device).view(-1, 1, 1)
        std = torch.tensor(std, device=self.device).view(-1, 1, 1)
        return mean, std / config.scaling_factor

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.trainable["unet"](
            x,
            t,
            encoder_hidden_states=tensors["prompt_embeds"],
            added_cond_kwargs=self.added_conditions(tensors),
            return_dict=False,
        )[0]
        return output

    @staticmethod
    def added_conditions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the network besides the texts' tokens."""
        return {"text_embeds": tensors["pooled_prompt_embeds"], "time_ids": tensors["time_ids"]}
