"""HunyuanVideo, text to video: a language model's tokens and CLIP's pooled output.

Guidance is an input of the network.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..base import Guidance
from ..pretrained import Video
from ..process import Flow
from ..schedules import flow_times


class HunyuanVideo(Video):
    """Adapter of ``diffusers.HunyuanVideoPipeline``; trains the transformer.

    Latents are (16, F, H/8, W/8).

    A bare guidance number is the embedded scale, as in the pipeline's call; ``{"text": …}`` is its
    ``true_cfg_scale``. A network without that input knows "text" alone.
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
    default_size = (720, 1280)
    default_frames = 129
    frame_rate = 24
    # Tokens of the prompt alone, after the words around every prompt.
    max_sequence_length = 256

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        self.stride = (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial)
        self.patch_size = pipeline.transformer.config.patch_size
        if pipeline.transformer.config.guidance_embeds:
            self.guidances = {"embedded": 6.0, "text": 1.0}

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1].tolist()
        return flow_times(self.pipeline.scheduler, num_inference_steps, 0, sigmas)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, pooled, mask = self.pipeline.encode_prompt(
            list(texts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "prompt_attention_mask": mask,
        }

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        scales = self.scales(guidance)
        options = super().call(latents, guidance, **inputs)
        options |= {"true_cfg_scale": scales["text"], "guidance_scale": scales.get("embedded", 0.0)}
        return {**options, "negative_prompt": [self.default_negative] * len(latents)}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        guidance = tensors.get("guidance")
        output: Tensor = self.trainable["transformer"](
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["prompt_attention_mask"],
            pooled_projections=tensors["pooled_prompt_embeds"],
            guidance=None if guidance is None else 1000 * guidance,
            return_dict=False,
        )[0]
        return output
