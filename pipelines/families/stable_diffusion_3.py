"""Stable Diffusion 3 and 3.5: two CLIP encoders and T5 (or none), a flow transformer.

The scheduler shifts the times.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..pretrained import Pretrained
from ..process import Flow
from ..schedules import flow_times


class StableDiffusion3(Pretrained):
    """Adapter of ``diffusers.StableDiffusion3Pipeline``; trains the transformer.

    Without T5 its place holds zeros, as many as CLIP's tokens: pass ``max_sequence_length`` of that
    number to compare with the pipeline's own call.
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

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        self.patch_size = pipeline.patch_size
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)
        self.max_sequence_length = 256 if pipeline.text_encoder_3 else pipeline.tokenizer_max_length

    @property
    def text_limit(self) -> tuple[Any, int]:
        tokenizer = self.pipeline.tokenizer_3
        return (tokenizer, self.max_sequence_length) if tokenizer else super().text_limit

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        tokens = latent_shape[-2] * latent_shape[-1] // self.patch_size**2
        return flow_times(self.pipeline.scheduler, num_inference_steps, tokens)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts),
            None,
            None,
            self.device,
            1,
            False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.trainable["transformer"](
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=tensors["prompt_embeds"],
            pooled_projections=tensors["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return output
