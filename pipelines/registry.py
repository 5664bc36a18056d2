"""Model families by pipeline class name, resolved lazily; ``load`` picks one."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

from .base import Model

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


def _family(class_name: str) -> Any:
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
        model = _family(type(source).__name__)(source)
        return model

    import_xformers()
    import diffusers
    import torch

    index = _model_index(source, options.get("revision"))
    family = _family(index.get("_class_name", ""))
    missing = {
        name: None for name, row in index.items() if isinstance(row, list) and row[0] is None
    }
    pipeline_class = getattr(diffusers, index["_class_name"])
    with _quiet():
        pipeline = pipeline_class.from_pretrained(
            source, torch_dtype=dtype or torch.float32, **{**missing, **options}
        )
    model = family(pipeline)
    return model


def import_xformers() -> None:
    """Import it, where it is installed, before diffusers does.

    A build for another torch keeps the error of its import, the error its frame, and a frame its
    callers' with all that they hold: the weights of a model that is being loaded would never be
    freed. In a thread of its own nobody called.
    """
    if "xformers.ops" not in sys.modules and find_spec("xformers") is not None:
        thread = Thread(target=_try_import, args=("xformers.ops",))
        thread.start()
        thread.join()


def _try_import(module: str) -> None:
    with suppress(Exception):
        import_module(module)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own progress bars, which have no switch a call; left as they were."""
    import diffusers.utils.logging
    import transformers.utils.logging

    silenced = [
        log
        for log in (diffusers.utils.logging, transformers.utils.logging)
        if log.is_progress_bar_enabled()
    ]
    advice = logging.getLogger("diffusers.models.modeling_utils")
    for log in silenced:
        log.disable_progress_bar()
    advice.addFilter(_says_something)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    finally:
        advice.removeFilter(_says_something)
        for log in silenced:
            log.enable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    """AnimateDiff's network warns of an empty list of modules each time it is built."""
    return "should be kept in float32: []" not in record.getMessage()


def _model_index(source: str | Path, revision: str | None) -> dict[str, Any]:
    folder = Path(source)
    if str(source) and folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise ValueError(f"{folder}: no diffusers pipeline (model_index.json is missing)")
    elif folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(
            f"{source}: no such pipeline; want a folder with model_index.json, a hub name owner/model, "
            f"or one of {sorted(TOYS)}"
        )
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            file = Path(hf_hub_download(str(source), "model_index.json", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"{source}: no such folder, and the hub did not give it: {error.__class__.__name__}"
            ) from error
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(index, dict):
        raise ValueError(f"{file}: want a JSON object")
    return index
