"""PixArt-Sigma: T5's tokens, a diffusion transformer on SDXL's latents.

The network also predicts a variance, which is not used.
"""

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor

from ..base import Guidance
from ..pretrained import OwnLora
from ..schedules import ddim_process, ddim_times


class PixArtTransformer2DModel(
    diffusers.PixArtTransformer2DModel,  # type: ignore[misc]
    PeftAdapterMixin,  # type: ignore[misc]
):
    """diffusers' network, made to take a LoRA; the name is the one in its files."""


class PixArtSigma(OwnLora):
    """Adapter of ``diffusers.PixArtSigmaPipeline``; trains the transformer.

    Prompts are put in lower case and nothing else: the pipeline's cleaning of them depends on
    optional packages. Sizes are as asked for, where the pipeline draws the nearest of its table and
    scales the picture. The pipeline knows no LoRA, so one is a file of the component.
    """

    max_sequence_length = 300

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        pipeline.transformer.__class__ = PixArtTransformer2DModel
        self.trainable = {"transformer": pipeline.transformer}
        self.process = ddim_process(pipeline.scheduler)
        self.patch_size = pipeline.transformer.config.patch_size
        side = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            # SDXL's VAE overflows in half precision.
            pipeline.vae.float()

    @property
    def text_limit(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer, self.max_sequence_length

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        return ddim_times(self.pipeline.scheduler, num_inference_steps)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(texts), False, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        options = super().call(latents, guidance, **inputs)
        return {**options, "clean_caption": False, "use_resolution_binning": False}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.trainable["transformer"](
            x,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["prompt_attention_mask"],
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        # The other channels are the variance.
        return output[:, : x.shape[1]]
