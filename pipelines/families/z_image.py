"""Z-Image: a language model reads the text; the transformer's time runs from 0 to 1.

Time 0 is noise, 1 the picture.
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
        # the chat has eight tokens more, of which two are counted
        return self.pipeline.tokenizer, self.max_sequence_length - 6

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        tokens = latent_shape[-2] * latent_shape[-1] // 4
        sigmas = even_sigmas(num_inference_steps)
        return flow_times(self.pipeline.scheduler, num_inference_steps, tokens, sigmas)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens (B, L, D) and which of them are real, (B, L), always from the first on."""
        embeds, _ = self.pipeline.encode_prompt(
            list(texts), self.device, False, max_sequence_length=self.max_sequence_length
        )
        longest = self.max_sequence_length
        mask = torch.zeros(len(embeds), longest, dtype=torch.bool, device=self.device)
        for row, text in zip(mask, embeds, strict=True):
            row[: len(text)] = True
        padded = [pad(text, (0, 0, 0, longest - len(text))) for text in embeds]
        return {"prompt_embeds": torch.stack(padded), "prompt_embeds_mask": mask}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        # the pipeline steps in float32, whatever the network's dtype
        options = super().call(latents.float(), guidance, **inputs)
        return {**options, "guidance_scale": max(options["guidance_scale"] - 1, 0.0)}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """One call of the network, on lists of rows and of texts without padding.

        Where the positions of a picture begin depends on the length of its text.
        """
        lengths = tensors["prompt_embeds_mask"].sum(1).tolist()
        rows = zip(tensors["prompt_embeds"], lengths, strict=True)
        texts = [text[:length] for text, length in rows]
        network = self.trainable["transformer"]
        output = network(list(x.unsqueeze(2)), 1 - t, texts, return_dict=False)[0]
        # Guided in float32, as in the pipeline.
        return -torch.stack(output).squeeze(2).float()
