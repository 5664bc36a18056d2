"""AnimateDiff and ModelScope: videos by U-Nets, whose VAE works picture by picture."""

import re
from collections.abc import Sequence
from typing import Any

import diffusers
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor

from ..lora_targets import LoraOptions
from ..pretrained import OwnLora
from ..trainable import unwrap
from .stable_diffusion import StableDiffusion

MOTION_PROJECTION = re.compile(r".*motion_module.*\.proj_(in|out)")


class PerFrame(StableDiffusion):
    """Latents are (4, F, H/8, W/8); each frame is a picture of its own to the VAE."""

    default_frames = 16

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        channels, *sides = super().latent_shape(height, width)
        if num_frames < 1:
            raise ValueError(f"num_frames: want 1 or more, got {num_frames}")
        return (channels, num_frames, *sides)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        if frames is not None:
            latents = latents[:, :, list(frames)]
        pictures = super().decode(latents.transpose(1, 2).flatten(0, 1))
        return pictures.unflatten(0, (len(latents), -1))

    def encode(self, media: Tensor) -> Tensor:
        latents: Tensor = super().encode(media.flatten(0, 1)).unflatten(0, media.shape[:2])
        return latents.transpose(1, 2)


class AnimateDiff(PerFrame):
    """Adapter of ``diffusers.AnimateDiffPipeline``; trains the UNet, motion modules included.

    To train the motion alone, name it: ``target_modules: ["*motion_modules*to_q",
    "*motion_modules*to_k", "*motion_modules*to_v", "*motion_modules*to_out.0"]``.
    """

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        longest = pipeline.motion_adapter.config.motion_max_seq_length
        self.default_frames = min(self.default_frames, longest)

    def train_lora(self, options: LoraOptions) -> None:
        """Add the LoRA, as any family does.

        Raises:
            ValueError: the targets hit a projection around a motion module.
        """
        super().train_lora(options)
        layers = unwrap(self.trainable["unet"]).named_modules()
        adapted = [name for name, layer in layers if hasattr(layer, "lora_A")]
        if any(MOTION_PROJECTION.fullmatch(name) for name in adapted):
            self.restore_weights()
            raise ValueError(
                "target_modules: proj_in and proj_out of motion modules take no LoRA (diffusers "
                "passes their input by name, and peft's has another); leave them out, or want "
                "null, the family's own"
            )

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        longest = self.pipeline.motion_adapter.config.motion_max_seq_length
        if num_frames > longest:
            raise ValueError(f"num_frames: want 1 to {longest}, got {num_frames}")
        return super().latent_shape(height, width, num_frames)

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        # the network takes a text for every frame
        texts = tensors["prompt_embeds"].repeat_interleave(x.shape[2], 0)
        return super().denoise(x, t, {**tensors, "prompt_embeds": texts})


class UNet3DConditionModel(diffusers.UNet3DConditionModel, PeftAdapterMixin):  # type: ignore[misc]
    """diffusers' network, made to take a LoRA; the name is the one in its files."""


class ModelScope(OwnLora, PerFrame):
    """Adapter of ``diffusers.TextToVideoSDPipeline``; trains the UNet.

    The pipeline's ``save_lora_weights`` writes what it cannot load, so a LoRA is a file of the
    component.
    """

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        pipeline.unet.__class__ = UNet3DConditionModel
