"""Lumina-Image 2.0: Gemma's tokens and the picture's in one sequence.

The network's time is 0 at noise and 1 at the picture.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..pretrained import Pretrained
from ..process import Flow
from ..schedules import even_sigmas, flow_times


class Lumina2(Pretrained):
    """Adapter of ``diffusers.Lumina2Pipeline``; trains the transformer.

    A prompt follows the pipeline's system prompt, which counts towards its 256 tokens; a negative
    text does not. Guidance turns the output, and leaves it as long as it was with the text.
    """

    max_sequence_length = 256

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        self.patch_size = pipeline.transformer.config.patch_size
        self.template = f"{pipeline.system_prompt} <Prompt Start> "
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)

    @property
    def text_limit(self) -> tuple[Any, int]:
        tokenizer = self.pipeline.tokenizer
        return tokenizer, self.max_sequence_length - len(tokenizer.tokenize(self.template))

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        """The pipeline's times, which count channels where dynamic shifting means tokens."""
        sigmas = even_sigmas(num_inference_steps)
        return flow_times(self.pipeline.scheduler, num_inference_steps, latent_shape[0], sigmas)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self.encode_negatives([self.template + text for text in texts])

    def encode_negatives(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, mask = self.pipeline._get_gemma_prompt_embeds(
            list(texts), self.device, self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def guided(self, without: Tensor, with_text: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance, each row of pixels of the norm of the output with the text."""
        guided = super().guided(without, with_text, scale)
        wanted = with_text.norm(dim=-1, keepdim=True)
        return guided * (wanted / guided.norm(dim=-1, keepdim=True))

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The network goes from noise to the picture: time and output are turned round."""
        output: Tensor = self.trainable["transformer"](
            hidden_states=x,
            timestep=1 - t,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return -output
