"""FLUX.1 Kontext: FLUX.1 that reads the picture to edit as more tokens of its sequence."""

from typing import Any

import torch
from torch import Tensor

from ..base import Guidance
from ..pretrained import pictures
from .flux import Flux


class FluxKontext(Flux):
    """Adapter of ``diffusers.FluxKontextPipeline``; trains the transformer.

    ``encode_prompts`` wants ``image``, the pictures to edit, (B, 3, H, W) in [0, 1], as large as
    those to be made.
    """

    required_inputs = ("image",)

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        # as published; the call's default is FLUX.1's
        if "embedded" in self.guidances:
            self.guidances = {**self.guidances, "embedded": 2.5}

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        given = inputs.pop("image", None)
        image = pictures("image", "the pictures to edit", given, count, height, width)
        super().inputs(count, height, width, num_frames, **inputs)
        with torch.no_grad():
            return {"image_latents": self.encode(image)}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        """The pipeline would draw at a million pixels, from a picture of a size that it prefers."""
        options = super().call(latents, guidance, **inputs)
        return {**options, "max_area": options["height"] * options["width"], "_auto_resize": False}

    def sequence(self, x: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, positions = super().sequence(x, tensors)
        source, source_positions = super().sequence(tensors["image_latents"], tensors)
        # A second picture at the same places.
        source_positions[:, 0] = 1
        return torch.cat([tokens, source], 1), torch.cat([positions, source_positions])
