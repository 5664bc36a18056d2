"""Pipelines without weights: the real classes at their real size, of tensors that have a shape and no data.

A description is what a checkpoint's small files say: the class of the pipeline, class and configuration of each component.
It is read from a folder or the hub, without the weights, or from ``assets/published``.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
Description = Mapping[str, Any]


def skeleton(description: Description, dtype: torch.dtype = torch.float32) -> Any:
    """The described pipeline, its modules on the meta device; scheduler and tokenizers are real.

    Tokenizers have the described length and an alphabet for a vocabulary: which ids a text gets changes no shape.
    """
    index = dict(description["model_index"])
    parts = {name: _build(part, dtype) for name, part in description["components"].items()}
    return _class("diffusers", index.pop("_class_name"))(**parts, **index)


def make_fake(modules: Mapping[str, nn.Module], device: str = "cpu") -> FakeTensorMode:
    """Turn modules on the meta device into ones that run, on a device that need not exist, and compute only shapes.

    Call them outside of the returned mode with real tensors: what meets a fake one becomes fake, and masks, lengths and
    the like keep their values, which some pipelines branch on.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, Any] = {}  # a tensor that two modules share stays shared
    for root in modules.values():
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.device.type == "meta":
                    if id(parameter) not in known:
                        fake = FakeTensor(mode, parameter.data, torch.device(device))
                        known[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                    module._parameters[name] = known[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device.type == "meta":
                    module._buffers[name] = FakeTensor(mode, buffer, torch.device(device))
    return mode


def read_description(folder: Path) -> dict[str, Any]:
    """What a pipeline folder says of itself; its weights are not read.

    Raises:
        ValueError: a component's configuration is missing or not JSON.
    """
    index = json.loads((folder / "model_index.json").read_text())
    scalars = {name: value for name, value in index.items() if name == "_class_name" or not name.startswith("_")}
    components = {}
    for name, row in index.items():
        if isinstance(row, list):
            del scalars[name]
            components[name] = None if row[0] is None else _read_component(folder / name, *row)
    return {"model_index": scalars, "components": components}


def _read_component(folder: Path, library: str, kind: str) -> dict[str, Any]:
    for name in CONFIGS:
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            kept = {key: value for key, value in config.items() if not key.startswith("_")}
            found = {"class": f"{library}.{kind}", "config": kept}
            return found | ({"model_max_length": config.get("model_max_length")} if "Tokenizer" in kind else {})
    raise ValueError(f"{folder}: no configuration (want one of {CONFIGS})")


def _class(library: str, name: str) -> Any:
    if library not in ("diffusers", "transformers"):  # files name it, and files are not trusted
        raise ValueError(f"component class {library}.{name}: want one of diffusers or transformers")
    return getattr(importlib.import_module(library), name)


def _build(part: Mapping[str, Any] | None, dtype: torch.dtype) -> Any:
    if part is None:
        return None
    kind: str = part["class"].split(".")[-1]
    if "Tokenizer" in kind:
        return alphabet_tokenizer(part["model_max_length"], ends="CLIP" in kind)
    made = _class(*part["class"].split("."))
    if "Scheduler" in kind:
        return made.from_config(part["config"])
    if not issubclass(made, nn.Module):  # image processors, safety checkers' feature extractors
        return None
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            if part["class"].startswith("diffusers."):
                module = made.from_config(part["config"])
            else:
                module = made(made.config_class(**part["config"]))
    finally:
        torch.set_default_dtype(before)
    return module.eval()


def alphabet_tokenizer(length: int | None, ends: bool) -> Any:
    """A tokenizer of one token a character. ``ends``: a start and an end are put around a text, as CLIP's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    around = "<s> $A </s>" if ends else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
    )
