"""Model families by pipeline class name, resolved lazily; ``load`` picks one."""

from importlib import import_module
from pathlib import Path
from typing import Any

from .base import Model
from .loading import import_xformers, read_model_index, silenced

FAMILIES = {  # _class_name in model_index.json -> adapter
    "StableDiffusionPipeline": "families.stable_diffusion:StableDiffusion",
    "StableDiffusionInstructPix2PixPipeline": "families.instruct_pix2pix:InstructPix2Pix",
    "StableDiffusionControlNetPipeline": "families.controlnet:ControlNet",
    "StableDiffusionXLControlNetPipeline": "families.controlnet:ControlNetXL",
    "AnimateDiffPipeline": "families.animatediff:AnimateDiff",
    "TextToVideoSDPipeline": "families.animatediff:ModelScope",
    "StableDiffusionXLPipeline": "families.stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "families.stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": "families.flux:Flux",
    "FluxKontextPipeline": "families.flux_kontext:FluxKontext",
    "QwenImagePipeline": "families.qwen_image:QwenImage",
    "ZImagePipeline": "families.z_image:ZImage",
    "WanPipeline": "families.wan:Wan",
    "PixArtSigmaPipeline": "families.pixart_sigma:PixArtSigma",
    "SanaPipeline": "families.sana:Sana",
    "Lumina2Pipeline": "families.lumina_2:Lumina2",
    "WanImageToVideoPipeline": "families.wan_image:WanImage",
    "CogVideoXPipeline": "families.cogvideox:CogVideoX",
    "LTXPipeline": "families.ltx:LTXVideo",
    "HunyuanVideoPipeline": "families.hunyuan_video:HunyuanVideo",
}
TOYS = {"toy-diffusion": "families.toy:toy_diffusion", "toy-flow": "families.toy:toy_flow"}


def _resolve(target: str) -> Any:
    module, name = target.split(":")
    return getattr(import_module(f".{module}", __package__), name)


def family_of(class_name: str) -> Any:
    """The adapter of a pipeline class; ValueError lists those that have one."""
    if class_name not in FAMILIES:
        raise ValueError(f"no adapter for pipeline class {class_name!r}; have {sorted(FAMILIES)}")
    return _resolve(FAMILIES[class_name])


def load(source: Any, *, dtype: Any = None, **options: Any) -> Model:
    """A Model from a pipeline folder, a hub repository, a diffusers pipeline object, or a toy's
    name.

    The family is read from ``_class_name`` in model_index.json. Components that are null there are
    passed as explicit None, without which some pipelines (SD3 without T5) do not load. Weights come
    from safetensors; no remote code runs.

    Args:
        source: path, "owner/name", pipeline object, or one of ``TOYS``.
        dtype: torch dtype of the weights; None keeps float32.
        options: passed to ``from_pretrained`` (``variant``, ``revision`` …).

    Raises:
        ValueError: the folder is no pipeline, or its class has no adapter; the message lists what
            exists.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, str) and source in TOYS:
        model: Model = _resolve(TOYS[source])(**options)
        return model
    if not isinstance(source, (str, Path)):
        model = family_of(type(source).__name__)(source)
        return model

    import_xformers()
    import diffusers
    import torch

    index = read_model_index(source, options.get("revision"), list(TOYS))
    family = family_of(index.get("_class_name", ""))
    missing = {
        name: None for name, row in index.items() if isinstance(row, list) and row[0] is None
    }
    pipeline_class = getattr(diffusers, index["_class_name"])
    with silenced():
        pipeline = pipeline_class.from_pretrained(
            source, torch_dtype=dtype or torch.float32, **{**missing, **options}
        )
    model = family(pipeline)
    return model
