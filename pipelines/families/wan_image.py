"""Wan 2.1 and 2.2, image to video.

The first frame stands beside the latents, in their place, or goes through CLIP as well.
"""

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ..base import Guidance
from ..pretrained import pictures
from .wan import Wan


class WanImage(Wan):
    """Adapter of ``diffusers.WanImageToVideoPipeline``; trains the transformer, or both.

    ``encode_prompts`` wants ``image``, the first frames, (B, 3, H, W) in [0, 1]. The network reads
    their latents beside the noisy ones, with a mask; 2.1 reads what CLIP sees in them too. 2.2 TI2V
    reads them in the place of the noisy ones, at time 0; for these models, the network's
    output at the first frame is the velocity from the noise to the given image.
    """

    required_inputs = ("image",)
    one_by_one = True

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.sees = self.network.image_dim is not None
        # without the last two, the pipeline would add them when it loads a LoRA
        if self.sees:
            self.default_lora_targets = (*self.default_lora_targets, "add_k_proj", "add_v_proj")

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        given = inputs.pop("image", None)
        image = pictures("image", "the first frames", given, count, height, width)
        super().inputs(count, height, width, num_frames, **inputs)
        with torch.no_grad():
            tensors = {"image_latents": self.condition(image, num_frames)}
            if self.sees:
                files = self.files(image)
                tensors["image_embeds"] = self.pipeline.encode_image(files, self.device)
        return tensors

    def condition(self, image: Tensor, num_frames: int) -> Tensor:
        """The image's latents (B, C, 1, h, w), or those of a grey video that begins with it.

        The latents of such a video stand below a mask of its first frame.
        """
        video = image[:, None]
        if self.pipeline.config.expand_timesteps:
            return self.encode(video)
        grey = torch.full_like(video, 0.5).expand(-1, num_frames - 1, -1, -1, -1)
        latents = self.encode(torch.cat([video, grey], 1))
        mask = torch.zeros_like(latents[:, :1]).repeat(1, self.stride[0], 1, 1, 1)
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], 1)

    @staticmethod
    def files(image: Tensor) -> list[Any]:
        """Pictures as PIL images: a tensor would be scaled twice for CLIP by the pipeline."""
        arrays = VaeImageProcessor.pt_to_numpy(image)
        files: list[Any] = VaeImageProcessor.numpy_to_pil(arrays)
        return files

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        """Keyword arguments of the pipeline, which takes one image for all its prompts."""
        (picture,) = self.files(inputs.pop("image"))
        return super().call(latents, guidance, image=picture, **inputs)

    def _call(self, name: str, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        image = tensors["image_latents"]
        if not self.pipeline.config.expand_timesteps:
            return super()._call(name, torch.cat([x, image], 1), t, tensors)

        # 2.2 TI2V: the image's tokens are at time 0
        frame = (x.shape[3] // 2) * (x.shape[4] // 2)
        times = t[:, None].repeat(1, frame * x.shape[2])
        times[:, :frame] = 0
        output = super()._call(name, torch.cat([image, x[:, :, 1:]], 2), times, tensors)
        first = (x[:, :, :1] - image) / t.to(x)[:, None, None, None, None]
        return torch.cat([first, output[:, :, 1:]], 2)
