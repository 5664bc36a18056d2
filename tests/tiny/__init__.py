"""Tiny random pipelines of real diffusers classes, a family a file.

They run the code paths of a real checkpoint in milliseconds.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from align_gen import pipelines
from align_gen.check.findings import Finding
from align_gen.check.subject import Subject


def of(file: str, name: str | None = None, **options: Any) -> Callable[[], Any]:
    """The builder ``name`` of a file, with options; None: the file's own name. Imported on use."""
    return lambda: getattr(import_module(f"{__name__}.{file}"), name or file)(**options)


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": of("stable_diffusion"),
    "instruct-pix2pix": of("instruct_pix2pix"),
    "controlnet": of("controlnet"),
    "animatediff": of("animatediff"),
    "modelscope": of("animatediff", "modelscope"),
    "sdxl": of("stable_diffusion_xl"),
    "controlnet-xl": of("controlnet", "controlnet_xl"),
    "sd3": of("stable_diffusion_3"),
    "sd3-without-t5": of("stable_diffusion_3", t5=False),
    "sd3-dynamic-shift": of("stable_diffusion_3", use_dynamic_shifting=True, shift=1.0),
    "flux": of("flux"),
    "flux-schnell": of("flux", guidance_embeds=False),
    "flux-kontext": of("flux_kontext"),
    "qwen-image": of("qwen_image"),
    "z-image": of("z_image"),
    "wan": of("wan"),
    "wan-euler": of("wan", euler=True),
    "wan-2.2": of("wan", boundary_ratio=0.8, euler=True),
    "pixart-sigma": of("pixart_sigma"),
    "sana": of("sana"),
    "sana-euler": of("sana", euler=True),
    "lumina-2": of("lumina_2"),
    "lumina-2-dynamic-shift": of("lumina_2", use_dynamic_shifting=True, shift=1.0),
    "cogvideox": of("cogvideox", use_rotary_positional_embeddings=True),
    "cogvideox-2b": of("cogvideox", snr_shift_scale=3.0),
    "cogvideox-1.5": of(
        "cogvideox", use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False
    ),
    "wan-image-2.1": of("wan_image"),
    "wan-image-2.2": of("wan_image", boundary_ratio=0.8),
    "wan-image-2.2-ti2v": of("wan_image", expand_timesteps=True),
    "ltx": of("ltx"),
    "ltx-0.9.5": of("ltx", timestep_conditioning=True),
    "hunyuan-video": of("hunyuan_video"),
    "hunyuan-video-undistilled": of("hunyuan_video", guidance_embeds=False),
}

IMAGE: dict[str, Any] = {"height": 16, "width": 16}
SIZES = {
    "SanaPipeline": {"height": 32, "width": 32},
    "AnimateDiffPipeline": {**IMAGE, "num_frames": 3},
    "TextToVideoSDPipeline": {**IMAGE, "num_frames": 3},
    "WanPipeline": {"height": 32, "width": 32, "num_frames": 5},
    "WanImageToVideoPipeline": {"height": 32, "width": 48, "num_frames": 5},
    "CogVideoXPipeline": {"height": 16, "width": 24, "num_frames": 9},
    "LTXPipeline": {"height": 32, "width": 64, "num_frames": 5},
    "HunyuanVideoPipeline": {"height": 16, "width": 32, "num_frames": 5},
}


def subject(name: str) -> Subject:
    """A tiny pipeline to check, at a size that its VAE takes."""
    pipeline = PIPELINES[name]()
    return Subject.of(pipelines.load(pipeline), **SIZES.get(type(pipeline).__name__, IMAGE))


def failed(found: list[Finding]) -> list[str]:
    """The laws that do not hold, and by how much."""
    return [
        f"{finding.name}: {finding.figure} (limit {finding.limit})"
        for finding in found
        if not finding.passed
    ]
