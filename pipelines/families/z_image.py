"""Z-Image: a language model reads the text, a flow transformer that runs from noise at 0 to the
picture at 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..base import Guidance
from ..pretrained import Pretrained
from ..process import Flow
from ..schedules import even_sigmas, flow_times


class ZImage(Pretrained):
    """Adapter of ``diffusers.ZImagePipeline``; trains the transformer.

    The call's ``guidance_scale`` is what is added to the output with the text: one less than "text"
    here.
    """

    default_size = (1024, 1024)
    patch_size = 2
    max_sequence_length = 512

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()

    @property
    def text_limit(self) -> tuple[Any, int]:
        return (
            self.pipeline.tokenizer,
            self.max_sequence_length - 6,
        )  # the chat has eight tokens more, two are counted

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        sigmas = even_sigmas(num_inference_steps)
        return flow_times(
            self.pipeline.scheduler,
            num_inference_steps,
            latent_shape[-2] * latent_shape[-1] // 4,
            sigmas,
        )

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens (B, L, D) and which of them are real, (B, L), always from the first on."""
        embeds, _ = self.pipeline.encode_prompt(
            list(texts), self.device, False, max_sequence_length=self.max_sequence_length
        )
        mask = torch.zeros(
            len(embeds), self.max_sequence_length, dtype=torch.bool, device=self.device
        )
        for row, text in zip(mask, embeds, strict=True):
            row[: len(text)] = True
        padded = [pad(text, (0, 0, 0, self.max_sequence_length - len(text))) for text in embeds]
        return {"prompt_embeds": torch.stack(padded), "prompt_embeds_mask": mask}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        options = super().call(
            latents.float(), guidance, **inputs
        )  # it steps in float32, whatever the network's
        return {**options, "guidance_scale": max(options["guidance_scale"] - 1, 0.0)}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The network takes lists, and texts without padding: where a picture's positions begin
        depends on that.
        """
        lengths = tensors["prompt_embeds_mask"].sum(1).tolist()
        texts = [
            text[:length] for text, length in zip(tensors["prompt_embeds"], lengths, strict=True)
        ]
        output = self.trainable["transformer"](
            list(x.unsqueeze(2)), 1 - t, texts, return_dict=False
        )[0]
        return -torch.stack(output).squeeze(2).float()  # guided in float32, as in the pipeline
