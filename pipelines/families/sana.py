"""Sana: a small Gemma with an instruction, linear attention on latents 32 times smaller.

Times are those of the DPM scheduler.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..base import Guidance
from ..pretrained import Pretrained
from ..process import Flow
from ..schedules import flow_times, network_time


class Sana(Pretrained):
    """Adapter of ``diffusers.SanaPipeline``, 1.0 and 1.5; trains the transformer.

    Latents are (32, H/32, W/32).

    A prompt follows the pipeline's own instruction to write it out; a negative text does not. Sizes
    are as asked for, where the pipeline draws the nearest of its table and scales the picture.
    """

    max_sequence_length = 300

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        self.patch_size = pipeline.transformer.config.patch_size
        side = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)
        options = inspect.signature(type(pipeline).__call__).parameters
        self.instruction: list[str] = options["complex_human_instruction"].default
        self.template = "\n".join(self.instruction)

    @property
    def text_limit(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer, self.max_sequence_length

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        return flow_times(self.pipeline.scheduler, num_inference_steps, 0)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self._encode_after(self.instruction, texts)

    def encode_negatives(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self._encode_after(None, texts)

    def _encode_after(
        self, instruction: list[str] | None, texts: Sequence[str]
    ) -> dict[str, Tensor]:
        """300 tokens: the first, and the last 299, which leave out most of the instruction."""
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(texts),
            False,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        return {**super().call(latents, guidance, **inputs), "use_resolution_binning": False}

    def encode(self, media: Tensor) -> Tensor:
        """The autoencoder has no distribution to take the mean of."""
        vae = self.pipeline.vae
        mean, std = self.latent_statistics()
        raw: Tensor = vae.encode(media.to(vae.device, vae.dtype) * 2 - 1, return_dict=False)[0]
        return (raw - mean) / std

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.trainable["transformer"](
            x,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["prompt_attention_mask"],
            timestep=network_time(self.pipeline.scheduler, t)
            * self.pipeline.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return output
