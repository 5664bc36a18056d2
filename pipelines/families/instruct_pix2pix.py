"""InstructPix2Pix: Stable Diffusion that sees the picture to edit beside its own latents."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..base import Condition, Guidance
from ..pretrained import pictures
from .stable_diffusion import StableDiffusion


class InstructPix2Pix(StableDiffusion):
    """Adapter of ``diffusers.StableDiffusionInstructPix2PixPipeline``; trains the UNet.

    ``encode_prompts`` wants ``image``, the pictures to edit, (B, 3, H, W) in [0, 1]. Guidance has
    two scales (Brooks et al. 2023, equation 3): "text", from the picture to picture and words, and
    "image", from nothing to the picture.
    """

    required_inputs = ("image",)
    guidances = MappingProxyType({"text": 7.5, "image": 1.5})

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"prompt_embeds": self.pipeline._encode_prompt(list(texts), self.device, 1, False)}

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        given = inputs.pop("image", None)
        image = pictures("image", "the pictures to edit", given, count, height, width)
        super().inputs(count, height, width, num_frames, **inputs)
        # raw latents, as the network was trained on
        factor = self.pipeline.vae.config.scaling_factor
        with torch.no_grad():
            return {"image_latents": self.encode(image) / factor}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        """Keyword arguments of the pipeline, which samples at the size of its picture."""
        options = super().call(latents, guidance, **inputs)
        for name in ("height", "width"):
            options.pop(name, None)
        return {**options, "image_guidance_scale": self.scales(guidance)["image"]}

    def rows_per_sample(self, guidance: Guidance) -> int:
        return 3 if self.scales(guidance)["text"] > 1 else 1

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        scales = self.scales(guidance)
        tensors = condition.tensors
        x = x_t.to(self.dtype)
        t = t.to(x_t.device).expand(len(x_t))
        text = tensors["prompt_embeds"]
        image = tensors["image_latents"]
        if scales["text"] <= 1:
            return self.denoise(x, t, self._ready({"prompt_embeds": text, "image_latents": image}))

        # in one call: with picture and words, with the picture, with nothing
        negative = tensors["negative_prompt_embeds"]
        three = {
            "prompt_embeds": torch.cat([text, negative, negative]),
            "image_latents": torch.cat([image, image, torch.zeros_like(image)]),
        }
        output = self.denoise(x.repeat(3, 1, 1, 1), t.repeat(3), self._ready(three))
        with_both, with_image, with_none = output.chunk(3)
        by_text = with_both - with_image
        by_image = with_image - with_none
        return with_none + scales["text"] * by_text + scales["image"] * by_image

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return super().denoise(torch.cat([x, tensors["image_latents"]], 1), t, tensors)
