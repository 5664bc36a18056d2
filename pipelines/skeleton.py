"""Pipelines without weights: the real classes at their real size, on tensors without data.

A description is what the small files of a checkpoint say: the classes of the pipeline and of each
component, with their configurations. It is read from a folder, without the weights, or from
``assets/published``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from .folder_checks import LIBRARIES, component_class, require_sound
from .loading import import_xformers, read_model_index
from .registry import family_of

PUBLISHED = Path(__file__).resolve().parent.parent / "assets" / "published"
CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)
Description = Mapping[str, Any]


def skeleton(
    description: Description,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "meta",
) -> Any:
    """The described pipeline, its modules on ``device``; scheduler and tokenizers are real.

    Tokenizers have the described length and an alphabet for a vocabulary: the ids of a text change
    no shape.

    Args:
        device: of the modules; on any but meta they have random weights.
    """
    import_xformers()
    index = dict(description["model_index"])
    # Raises for a class without an adapter: nothing of it is built.
    family_of(index["_class_name"])
    parts = {name: _build(part, dtype, device) for name, part in description["components"].items()}
    # Some pipelines put a network together from two.
    with torch.device(device):
        return component_class("diffusers", index.pop("_class_name"))(**parts, **index)


def make_fake(modules: Mapping[str, nn.Module], device: str = "cpu") -> "ShapesOnly":
    """Turn modules on the meta device into ones that run and compute only shapes.

    The device that they run on need not exist.

    Call them with real tensors, inside the context that is returned.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # By identity: a tensor that two modules share stays shared.
    known: dict[int, Any] = {}

    def fake(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(fake(item) for item in value)
        if not isinstance(value, Tensor) or value.device.type != "meta":
            return value
        if id(value) not in known:
            twin: Tensor = FakeTensor(mode, value.detach(), torch.device(device))
            if isinstance(value, nn.Parameter):
                twin = nn.Parameter(twin, value.requires_grad)
            known[id(value)] = twin
        return known[id(value)]

    for root in modules.values():
        for module in root.modules():
            for tensors in (module._parameters, module._buffers):
                # Written into the dicts: a module refuses to be assigned a fake parameter.
                tensors.update({name: fake(value) for name, value in tensors.items()})
            # tables that are neither parameters nor buffers
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor | list | tuple):
                    setattr(module, name, fake(value))
    return ShapesOnly(mode)


class ShapesOnly(TorchFunctionMode):
    """Inside, fake and real tensors may meet; masks and lengths keep their values.

    What a fake tensor touches becomes fake.

    Inside of ``everything``, all is fake: for work that looks at no value and makes large tensors
    of its own.
    """

    def __init__(self, everything: FakeTensorMode):
        super().__init__()
        self.everything = everything

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        is_index = func is Tensor.__getitem__ and isinstance(args[0], FakeTensor)
        if is_index and _is_known_mask(args[1]):
            # as indices, so that the number of chosen elements is known
            args = (args[0], args[1].nonzero(as_tuple=True))
        return func(*args, **(kwargs or {}))


def _is_known_mask(index: Any) -> bool:
    """Whether an index is a mask with values, not a fake one."""
    is_real = isinstance(index, Tensor) and not isinstance(index, FakeTensor)
    return is_real and index.dtype == torch.bool


def describe_source(source: str) -> Description:
    """The description of a pipeline folder, a published checkpoint, or another on the hub.

    Raises:
        ValueError: it is none of them.
    """
    if Path(source).is_dir():
        return read_description(Path(source))
    for file in sorted(PUBLISHED.glob("*.json")):
        description: dict[str, Any] = json.loads(file.read_text())
        if source == description["repo"]:
            return description
    # Its errors say what is wanted.
    read_model_index(source)
    from huggingface_hub import snapshot_download

    return read_description(Path(snapshot_download(source, allow_patterns="*.json")))


def read_description(folder: Path) -> dict[str, Any]:
    """The description of a pipeline folder; its weights are not read.

    Raises:
        ValueError: a component's configuration is missing, not JSON, or of no network that there
            can be.
    """
    index = read_model_index(folder)
    require_sound(folder, index)
    scalars: dict[str, Any] = {}
    components: dict[str, Any] = {}
    for name, value in index.items():
        if isinstance(value, list):
            # Of another library: null, or a safety checker, which samples nothing.
            known = value[0] in LIBRARIES
            components[name] = _read_component(folder / name, *value) if known else None
        elif name == "_class_name" or not name.startswith("_"):
            scalars[name] = value
    return {"model_index": scalars, "components": components}


def _read_component(folder: Path, library: str, kind: str) -> dict[str, Any]:
    for name in CONFIGS:
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            public = {key: value for key, value in config.items() if not key.startswith("_")}
            described = {"class": f"{library}.{kind}", "config": public}
            if "Tokenizer" in kind:
                described["model_max_length"] = config.get("model_max_length")
            return described
    raise ValueError(f"{folder}: no configuration (want one of {CONFIGS})")


def _build(part: Mapping[str, Any] | None, dtype: torch.dtype, device: torch.device | str) -> Any:
    if part is None:
        return None
    kind: str = part["class"].split(".")[-1]
    if "Tokenizer" in kind:
        return alphabet_tokenizer(part["model_max_length"], ends="CLIP" in kind)
    built = component_class(*part["class"].split("."))
    config = part["config"]
    if "Scheduler" in kind:
        return built.from_config(config)
    # Image processors.
    if not issubclass(built, nn.Module):
        return built(**config)

    # both libraries build networks in the default dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if part["class"].startswith("diffusers."):
                module = built.from_config(config)
            else:
                module = built(built.config_class(**config))
    finally:
        torch.set_default_dtype(before)
    return module.eval()


def alphabet_tokenizer(length: int | None, ends: bool) -> Any:
    """A tokenizer of one token a character.

    ``ends``: a start and an end are put around a text, as CLIP's does.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 127))]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
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
