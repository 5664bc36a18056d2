"""CogVideoX, text to video: T5, v-prediction on a noise schedule of its own.

Latents come frame by frame, before channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import Guidance
from ..pretrained import Video
from ..schedules import ddim_process, ddim_times


class CogVideoX(Video):
    """Adapter of ``diffusers.CogVideoXPipeline``; trains the transformer.

    Latents are (16, F, H/8, W/8).

    CogVideoX 1.5 reads frames two by two, and a video has an odd number of them: its latents have
    one more in front, a copy of the first. ``decode`` drops it, as the pipeline does.
    """

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = ddim_process(pipeline.scheduler)
        self.stride = (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial)
        config = pipeline.transformer.config
        self.patch_size = config.patch_size
        self.padding = 1 if config.patch_size_t else 0
        self.max_sequence_length = config.max_text_seq_length
        self.default_frames = config.sample_frames
        side = self.stride[1]
        self.default_size = (config.sample_height * side, config.sample_width * side)
        # In 1.5, sample_height and sample_width bound the positions instead.
        if config.patch_size_t:
            self.default_size = (768, 1360)

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        return ddim_times(self.pipeline.scheduler, num_inference_steps)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _ = self.pipeline.encode_prompt(
            list(texts),
            None,
            False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        # the VAE takes latents two by two, and a single one only in front
        pair = 2 * self.stride[0]
        if num_frames % pair != 1:
            raise ValueError(f"num_frames: want a multiple of {pair} plus one, got {num_frames}")
        channels, length, *sides = super().latent_shape(height, width, num_frames)
        return (channels, length + self.padding, *sides)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        return super().decode(latents[:, :, self.padding :], frames)

    def encode(self, media: Tensor) -> Tensor:
        latents = super().encode(media)
        return torch.cat([latents[:, :, : self.padding], latents], 2)

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        """The pipeline has frames before channels."""
        return super().call(latents.transpose(1, 2), guidance, **inputs)

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        _, _, length, height, width = x.shape
        side = self.stride[1]
        rotary = None
        if self.pipeline.transformer.config.use_rotary_positional_embeddings:
            rotary = self.pipeline._prepare_rotary_positional_embeddings(
                height * side, width * side, length, x.device
            )
        output: Tensor = self.trainable["transformer"](
            hidden_states=x.transpose(1, 2),
            encoder_hidden_states=tensors["prompt_embeds"],
            timestep=t,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return output.transpose(1, 2)
