"""Qwen-Image: a vision-language model reads the text, a video VAE makes one frame.

Guidance keeps each token's norm.
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


class QwenImage(Pretrained):
    """Adapter of ``diffusers.QwenImagePipeline``; trains the transformer.

    The scale "text" is the call's ``true_cfg_scale``.
    """

    # Without to_add_out: nothing reads the last block's text.
    default_lora_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
    )
    # As published; the pipeline has no default.
    default_negative = " "
    patch_size = 2
    max_sequence_length = 512

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"transformer": pipeline.transformer}
        self.process = Flow()
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.default_size = (side, side)

    @property
    def text_limit(self) -> tuple[Any, int]:
        # five tokens follow a prompt, of which two are counted
        return self.pipeline.tokenizer, self.max_sequence_length - 3

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        tokens = latent_shape[-2] * latent_shape[-1] // 4
        sigmas = even_sigmas(num_inference_steps)
        return flow_times(self.pipeline.scheduler, num_inference_steps, tokens, sigmas)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens (B, L, D) and which of them are real, (B, L).

        L is fixed here; the pipeline's own is that of its longest text.
        """
        embeds, mask = self.pipeline._get_qwen_prompt_embeds(list(texts), self.device)
        # Negative where the pipeline's tokens are to be cut.
        room = (0, self.max_sequence_length - embeds.shape[1])
        return {
            "prompt_embeds": pad(embeds, (0, 0, *room)),
            "prompt_embeds_mask": pad(mask, room).bool(),
        }

    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        dtype = self.pipeline.vae.dtype
        mean = torch.tensor(config.latents_mean, device=self.device, dtype=dtype)
        std = torch.tensor(config.latents_std, device=self.device, dtype=dtype)
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        return super().decode(latents.unsqueeze(2), frames).squeeze(2)

    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media.unsqueeze(2)).squeeze(2)

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        options = super().call(self._pack(latents), guidance, **inputs)
        options["true_cfg_scale"] = options.pop("guidance_scale")
        # Else the pipeline warns of a text that it does not read.
        if options["true_cfg_scale"] > 1:
            options["negative_prompt"] = [self.default_negative] * len(latents)
        return options

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        output = self.trainable["transformer"](
            hidden_states=self._pack(x),
            # Rounded as the pipeline rounds it.
            timestep=(1000 * t).to(x.dtype) / 1000,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_hidden_states_mask=tensors["prompt_embeds_mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return self._unpack(output, height, width)

    def guided(self, without: Tensor, with_text: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance, each token of the norm of the output with the text."""
        guided = self._pack(super().guided(without, with_text, scale))
        wanted = self._pack(with_text).norm(dim=-1, keepdim=True)
        norm = wanted / guided.norm(dim=-1, keepdim=True)
        return self._unpack(guided * norm, *without.shape[-2:])

    def _pack(self, x: Tensor) -> Tensor:
        packed: Tensor = self.pipeline._pack_latents(x, *x.shape)
        return packed

    def _unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        factor = self.pipeline.vae_scale_factor
        unpacked: Tensor = self.pipeline._unpack_latents(
            tokens, height * factor, width * factor, factor
        )
        return unpacked.squeeze(2)
