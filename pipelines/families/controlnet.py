"""ControlNet on Stable Diffusion 1.x / 2.x and XL: a second network reads a control map and steers
the frozen UNet.
"""

from typing import Any

from torch import Tensor

from ..base import Guidance
from ..pretrained import OwnLora, pictures
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL


class _Controlled(OwnLora):
    """Trains the ControlNet. ``encode_prompts`` wants ``control``: maps (B, 3, H, W) in [0, 1].

    Its LoRA is a file of its own: the pipeline would load it into the UNet.
    """

    required_inputs = ("control",)

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        if pipeline.controlnet.config.get("global_pool_conditions"):
            raise ValueError("controlnet: global pooling (guess mode) is not supported")
        self.trainable = {"controlnet": pipeline.controlnet}

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        control = pictures("control", "the maps", inputs.pop("control", None), count, height, width)
        return {
            **super().inputs(count, height, width, num_frames, **inputs),
            "control": control.to(self.device),
        }

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        return super().call(latents, guidance, image=inputs.pop("control"), **inputs)

    def added(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """What both networks get besides the text."""
        return {}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        told = {
            "encoder_hidden_states": tensors["prompt_embeds"],
            "return_dict": False,
            **self.added(tensors),
        }
        down, middle = self.trainable["controlnet"](
            x, t, controlnet_cond=tensors["control"], **told
        )
        output: Tensor = self.pipeline.unet(
            x, t, down_block_additional_residuals=down, mid_block_additional_residual=middle, **told
        )[0]
        return output


class ControlNet(_Controlled, StableDiffusion):
    """Adapter of ``diffusers.StableDiffusionControlNetPipeline``."""


class ControlNetXL(_Controlled, StableDiffusionXL):
    """Adapter of ``diffusers.StableDiffusionXLControlNetPipeline``."""

    def added(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {"added_cond_kwargs": self.added_conditions(tensors)}
