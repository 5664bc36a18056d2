"""A tiny InstructPix2Pix."""

from diffusers import StableDiffusionInstructPix2PixPipeline

from .parts import ddim
from .stable_diffusion import stable_diffusion


def instruct_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    """The UNet reads four channels more: the picture to edit."""
    parts = stable_diffusion(in_channels=8, out_channels=4).components
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipeline.scheduler = ddim()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
