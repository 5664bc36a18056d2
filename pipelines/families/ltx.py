"""LTX-Video, text to video: T5 with its mask, latents packed into tokens.

Positions are in seconds and pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import Guidance
from ..pretrained import Video
from ..process import Flow
from ..schedules import even_sigmas, flow_times


class LTXVideo(Video):
    """Adapter of ``diffusers.LTXPipeline``; trains the transformer.

    Latents are (128, F, H/32, W/32).

    Videos have 25 frames a second. A VAE that takes a time (since 0.9.1) gets 0, the pipeline's
    default, and no noise is added; the VAE of 0.9.1 adds noise all the same.
    """

    default_size = (512, 704)
    default_frames = 161
    max_sequence_length = 128
    frame_rate = 25

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        self.stride = (
            pipeline.vae_temporal_compression_ratio,
            pipeline.vae_spatial_compression_ratio,
        )

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        _, length, height, width = latent_shape
        tokens = length * height * width
        sigmas = even_sigmas(num_inference_steps)
        return flow_times(self.pipeline.scheduler, num_inference_steps, tokens, sigmas)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(texts),
            None,
            False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        mean, std = (value.view(-1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
        return mean, std / vae.config.scaling_factor

    def decode_raw(self, raw: Tensor) -> Tensor:
        vae = self.pipeline.vae
        if not vae.config.timestep_conditioning:
            return super().decode_raw(raw)
        # the VAE's own slices forget the time
        parts = raw.split(1) if vae.use_slicing else [raw]
        times = [part.new_zeros(len(part)) for part in parts]
        media = [
            vae.decode(part, time, return_dict=False)[0]
            for part, time in zip(parts, times, strict=True)
        ]
        return torch.cat(media)

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        packed = self.pipeline._pack_latents(latents)
        return super().call(packed, guidance, frame_rate=self.frame_rate, **inputs)

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        _, _, length, height, width = x.shape
        frames, side = self.stride
        output = self.trainable["transformer"](
            hidden_states=self.pipeline._pack_latents(x),
            encoder_hidden_states=tensors["prompt_embeds"],
            timestep=1000 * t,
            encoder_attention_mask=tensors["prompt_attention_mask"],
            num_frames=length,
            height=height,
            width=width,
            rope_interpolation_scale=(frames / self.frame_rate, side, side),
            return_dict=False,
        )[0]
        unpacked: Tensor = self.pipeline._unpack_latents(output, length, height, width)
        return unpacked
