"""Model families by pipeline class name, resolved lazily; ``load`` picks one."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from . import hub
from .base import Model
from .folder_checks import require_sound
from .loading import import_xformers, is_hub_name, read_model_index, silenced

# _class_name in model_index.json -> module of this package:adapter
FAMILIES = {
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


def load(source: Any, *, dtype: Any = None, **options: Any) -> Model:
    """Load a Model: a pipeline folder, a hub repository, a diffusers pipeline object, or a toy.

    The family is read from ``_class_name`` in model_index.json. Weights come from safetensors; no
    remote code runs.

    Args:
        source: path, "owner/name", pipeline object, or one of ``TOYS``.
        dtype: torch dtype of the weights; None keeps float32.
        options: passed to ``from_pretrained`` (``variant``, ``revision`` …).

    Raises:
        ValueError: no such pipeline, its class has no adapter, or the hub does not give it; the
            message says what is wanted.
    """
    if isinstance(source, Model):
        return source
    model: Model
    if isinstance(source, str) and source in TOYS:
        model = _resolve(TOYS[source])(**options)
    elif isinstance(source, (str, Path)):
        model = _load_pretrained(source, dtype, options)
    else:
        model = family_of(type(source).__name__)(source)
    return model


def family_of(class_name: str) -> Any:
    """The adapter of a pipeline class; ValueError lists those that have one."""
    if class_name not in FAMILIES:
        raise ValueError(f"no adapter for pipeline class {class_name!r}; have {sorted(FAMILIES)}")
    return _resolve(FAMILIES[class_name])


def _load_pretrained(source: str | Path, dtype: Any, options: Mapping[str, Any]) -> Model:
    import_xformers()
    import diffusers
    import torch

    index = read_model_index(source, options.get("revision"), list(TOYS))
    family = family_of(index.get("_class_name", ""))
    # Without an explicit None for each null component, some pipelines (SD3 without T5) do not load.
    rows = {name: row for name, row in index.items() if isinstance(row, list)}
    missing = {name: None for name, row in rows.items() if row[0] is None}
    arguments = {"torch_dtype": dtype or torch.float32, **missing, **options}
    pipeline_class = getattr(diffusers, index["_class_name"])
    try:
        with silenced():
            # Downloaded first, so that its small files are checked before anything is built.
            is_away = is_hub_name(source)
            folder = pipeline_class.download(source, **missing, **options) if is_away else source
            require_sound(Path(folder), index)
            pipeline = pipeline_class.from_pretrained(folder, **arguments)
        model: Model = family(pipeline)
    except OSError as error:
        if not is_hub_name(source):
            raise
        raise ValueError(hub.why_not(str(source), "weights", error)) from error
    except ValueError:
        raise
    # An untrusted folder: the libraries have errors of their own for what is wrong in it.
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{source}: cannot be loaded ({said})") from error
    return model


def _resolve(target: str) -> Any:
    module, name = target.split(":")
    return getattr(import_module(f".{module}", __package__), name)
