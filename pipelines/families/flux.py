"""FLUX.1: CLIP's pooled output and T5's tokens, latents packed two by two.

Guidance is an input of the network.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import Guidance
from ..pretrained import Pretrained
from ..process import Flow
from ..schedules import even_sigmas, flow_times


class Flux(Pretrained):
    """Adapter of ``diffusers.FluxPipeline``; trains the transformer.

    A bare guidance number is the embedded scale, as in the pipeline's call; ``{"text": …}`` is its
    ``true_cfg_scale``. A network without that input (schnell) knows "text" alone.
    """

    default_lora_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
    patch_size = 2
    max_sequence_length = 512

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        if pipeline.transformer.config.guidance_embeds:
            self.guidances = {"embedded": 3.5, "text": 1.0}
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)

    @property
    def text_limit(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer_2, self.max_sequence_length

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        tokens = latent_shape[-2] * latent_shape[-1] // 4
        sigmas = even_sigmas(num_inference_steps)
        return flow_times(self.pipeline.scheduler, num_inference_steps, tokens, sigmas)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            list(texts), None, self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        scales = self.scales(guidance)
        packed = self.pipeline._pack_latents(latents, *latents.shape)
        options = super().call(packed, guidance, **inputs)
        options |= {"true_cfg_scale": scales["text"], "guidance_scale": scales.get("embedded", 0.0)}
        return {**options, "negative_prompt": [self.default_negative] * len(latents)}

    def sequence(self, x: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, 4C), those of x first, and their positions (N, 3)."""
        batch, channels, height, width = x.shape
        tokens: Tensor = self.pipeline._pack_latents(x, batch, channels, height, width)
        positions: Tensor = self.pipeline._prepare_latent_image_ids(
            batch, height // 2, width // 2, x.device, x.dtype
        )
        return tokens, positions

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        tokens, positions = self.sequence(x, tensors)
        text = tensors["prompt_embeds"]
        output = self.trainable["transformer"](
            hidden_states=tokens,
            timestep=t.to(x.dtype),
            guidance=tensors.get("guidance"),
            pooled_projections=tensors["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=positions,
            return_dict=False,
        )[0][:, : height * width // 4]
        factor = self.pipeline.vae_scale_factor
        unpacked: Tensor = self.pipeline._unpack_latents(
            output, height * factor, width * factor, factor
        )
        return unpacked
