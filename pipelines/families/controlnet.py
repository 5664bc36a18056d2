"""ControlNet on Stable Diffusion 1.x, 2.x and XL: a control map conditions the frozen U-Net."""

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
        tensors = super().inputs(count, height, width, num_frames, **inputs)
        return {**tensors, "control": control.to(self.device)}

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        return super().call(latents, guidance, image=inputs.pop("control"), **inputs)

    def added(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of both networks besides the text."""
        return {}

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        kwargs = {
            "encoder_hidden_states": tensors["prompt_embeds"],
            "return_dict": False,
            **self.added(tensors),
        }
        controlnet = self.trainable["controlnet"]
        down, middle = controlnet(x, t, controlnet_cond=tensors["control"], **kwargs)
        kwargs["down_block_additional_residuals"] = down
        kwargs["mid_block_additional_residual"] = middle
        output: Tensor = self.pipeline.unet(x, t, **kwargs)[0]
        return output


class ControlNet(_Controlled, StableDiffusion):
    """Adapter of ``diffusers.StableDiffusionControlNetPipeline``."""


class ControlNetXL(_Controlled, StableDiffusionXL):
    """Adapter of ``diffusers.StableDiffusionXLControlNetPipeline``."""

    def added(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {"added_cond_kwargs": self.added_conditions(tensors)}
