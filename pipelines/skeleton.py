"""Pipelines without weights: the real classes at their real size, of tensors that have a shape and
no data.

A description is what the small files of a checkpoint say: the classes of the pipeline and of each
component, with their configurations. It is read from a folder, without the weights, or from
``assets/published``.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from .loading import import_xformers, read_model_index
from .registry import family_of

PUBLISHED = Path(__file__).resolve().parent.parent / "assets" / "published"
CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)
LIBRARIES = ("diffusers", "transformers")
KINDS = (
    "Scheduler",
    "Tokenizer",
    "TokenizerFast",
    "Processor",
    "ProcessorFast",
    "FeatureExtractor",
    "Pipeline",
)
Description = Mapping[str, Any]


def skeleton(
    description: Description,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "meta",
) -> Any:
    """The described pipeline, its modules on ``device``; scheduler and tokenizers are real.

    Tokenizers have the described length and an alphabet for a vocabulary: which ids a text gets
    changes no shape.

    Args:
        device: on any but meta they have random weights.
    """
    import_xformers()
    index = dict(description["model_index"])
    family_of(index["_class_name"])  # of no other class is anything built
    parts = {name: _build(part, dtype, device) for name, part in description["components"].items()}
    with torch.device(device):  # some pipelines put a network together from two
        return _class("diffusers", index.pop("_class_name"))(**parts, **index)


def make_fake(modules: Mapping[str, nn.Module], device: str = "cpu") -> "ShapesOnly":
    """Turn modules on the meta device into ones that run, on a device that need not exist, and
    compute only shapes.

    Call them with real tensors, inside the context that is returned.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, Any] = {}  # a tensor that two modules share stays shared

    def fake(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(fake(item) for item in value)
        if not isinstance(value, Tensor) or value.device.type != "meta":
            return value
        if id(value) not in known:
            made = FakeTensor(mode, value.detach(), torch.device(device))
            parameter = isinstance(value, nn.Parameter)
            known[id(value)] = nn.Parameter(made, value.requires_grad) if parameter else made
        return known[id(value)]

    for root in modules.values():
        for module in root.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: fake(value) for name, value in tensors.items()})
            for name, value in list(vars(module).items()):  # tables that are neither
                if isinstance(value, Tensor | list | tuple):
                    setattr(module, name, fake(value))
    return ShapesOnly(mode)


class ShapesOnly(TorchFunctionMode):
    """Inside, fake and real tensors meet: what a fake one touches becomes fake, masks and lengths
    keep their values.

    Inside of ``everything``, all is fake: for work that looks at no value and makes large tensors
    of its own.
    """

    def __init__(self, everything: FakeTensorMode):
        super().__init__()
        self.everything = everything

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if (
            func is Tensor.__getitem__
            and isinstance(args[0], FakeTensor)
            and _is_known_mask(args[1])
        ):
            args = (args[0], args[1].nonzero(as_tuple=True))  # how many are chosen is then known
        return func(*args, **(kwargs or {}))


def _is_known_mask(index: Any) -> bool:
    return (
        isinstance(index, Tensor)
        and index.dtype == torch.bool
        and not isinstance(index, FakeTensor)
    )


def describe_source(source: str) -> Description:
    """The description of a pipeline folder, of a published checkpoint's hub name, or of another on
    the hub.

    Raises:
        ValueError: it is none of them.
    """
    if Path(source).is_dir():
        return read_description(Path(source))
    for file in sorted(PUBLISHED.glob("*.json")):
        description: dict[str, Any] = json.loads(file.read_text())
        if source == description["repo"]:
            return description
    read_model_index(source)  # whose errors say what is wanted
    from huggingface_hub import snapshot_download

    return read_description(Path(snapshot_download(source, allow_patterns="*.json")))


def read_description(folder: Path) -> dict[str, Any]:
    """What a pipeline folder says of itself; its weights are not read.

    Raises:
        ValueError: a component's configuration is missing or not JSON.
    """
    index = json.loads((folder / "model_index.json").read_text())
    scalars = {
        name: value
        for name, value in index.items()
        if name == "_class_name" or not name.startswith("_")
    }
    components = {}
    for name, row in index.items():
        if isinstance(row, list):
            del scalars[name]
            known = row[0] in LIBRARIES  # else none, or a safety checker, which draws nothing
            components[name] = _read_component(folder / name, *row) if known else None
    return {"model_index": scalars, "components": components}


def _read_component(folder: Path, library: str, kind: str) -> dict[str, Any]:
    for name in CONFIGS:
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            kept = {key: value for key, value in config.items() if not key.startswith("_")}
            found = {"class": f"{library}.{kind}", "config": kept}
            return found | (
                {"model_max_length": config.get("model_max_length")} if "Tokenizer" in kind else {}
            )
    raise ValueError(f"{folder}: no configuration (want one of {CONFIGS})")


def _class(library: str, name: str) -> Any:
    if library not in LIBRARIES:  # files name it, and files are not trusted
        raise ValueError(f"component class {library}.{name}: want one of {LIBRARIES}")
    found = getattr(importlib.import_module(library), name, None)
    if not isinstance(found, type) or (
        not name.endswith(KINDS) and not issubclass(found, nn.Module)
    ):
        raise ValueError(
            f"component class {library}.{name}: want a network, a scheduler, a tokenizer or a processor"
        )
    return found


def _build(part: Mapping[str, Any] | None, dtype: torch.dtype, device: torch.device | str) -> Any:
    if part is None:
        return None
    kind: str = part["class"].split(".")[-1]
    if "Tokenizer" in kind:
        return alphabet_tokenizer(part["model_max_length"], ends="CLIP" in kind)
    made = _class(*part["class"].split("."))
    if "Scheduler" in kind:
        return made.from_config(part["config"])
    if not issubclass(made, nn.Module):  # image processors
        return made(**part["config"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if part["class"].startswith("diffusers."):
                module = made.from_config(part["config"])
            else:
                module = made(made.config_class(**part["config"]))
    finally:
        torch.set_default_dtype(before)
    return module.eval()


def alphabet_tokenizer(length: int | None, ends: bool) -> Any:
    """A tokenizer of one token a character. ``ends``: a start and an end are put around a text, as
    CLIP's does.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    around = "<s> $A </s>" if ends else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )
