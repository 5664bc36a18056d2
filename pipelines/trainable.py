"""The trained networks of a generator, and the frozen reference that they are compared with."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from .lora_targets import LoraOptions, layers_named, require_names

Self = TypeVar("Self", bound="Trainable")
Reference = Literal["off", "start", "copy", "refreshed"]

# Names of LoRAs inside a component: the trained one, a copy of it as training began, and a copy
# of it as it was later.
POLICY = "policy"
START = "start"
REFRESHED = "refreshed"
OURS = (POLICY, START, REFRESHED)


class Trainable:
    """The networks of a pipeline that are trained, their LoRAs and their references.

    Attributes:
        trainable: component name -> the module that ``predict`` runs. What is put there (by DDP,
            by torch.compile) is what runs.
        default_lora_targets: layers that get a LoRA where none are named.
        reference: which weights ``as_reference`` runs: the frozen weights without a LoRA ("off"),
            the LoRA as training began ("start"), as it was refreshed ("refreshed"), or a whole
            copy ("copy").
        reference_copies: component name -> frozen copy, in full training; empty otherwise.
        reference_on_cpu: the copies wait on the CPU, and come to the device when they run.
    """

    trainable: dict[str, nn.Module]
    default_lora_targets: str | tuple[str, ...] = ()

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self.reference: Reference = "off"
        self.reference_copies: dict[str, nn.Module] = {}
        self.reference_on_cpu = False
        self._as_reference = False

    # -- what there is, and where

    @property
    def device(self) -> torch.device:
        return self._first_parameter().device

    @property
    def dtype(self) -> torch.dtype:
        return self._first_parameter().dtype

    def components(self) -> dict[str, nn.Module]:
        """Every module of the pipeline, trained or not."""
        parts = self.pipeline.components
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in a fixed order."""
        modules = self.trainable.values()
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def to(self: Self, device: torch.device | str) -> Self:
        """Move all modules; copies that wait on the CPU stay there."""
        copies = () if self.reference_on_cpu else self.reference_copies.values()
        for module in (*self.components().values(), *copies):
            module.to(device)
        return self

    def offload_copies(self) -> None:
        """Send the reference copies back to the CPU, where they are to wait there."""
        if self.reference_on_cpu:
            for module in self.reference_copies.values():
                module.to("cpu")

    # -- training

    def train_lora(self, options: LoraOptions) -> None:
        """Freeze everything and add a LoRA, initially the identity, to each trainable component.

        Training goes on from a LoRA that is loaded under the name "policy" already; a frozen copy
        of that LoRA is the reference.

        Raises:
            ValueError: the loaded LoRA has another rank or alpha, another LoRA is loaded besides,
                peft finds no layer of ``target_modules``, or they are no names.
        """
        from peft import LoraConfig

        self._require_no_foreign_lora()
        self._freeze()
        targets = options.target_modules or self.default_lora_targets
        names = [targets] if isinstance(targets, str) else list(targets)
        require_names(names)
        for module in map(unwrap, self.trainable.values()):
            if has_policy(module):
                self._go_on_from_loaded_lora(module, options)
            else:
                config = LoraConfig(
                    r=options.rank,
                    lora_alpha=options.alpha or options.rank,
                    target_modules=layers_named(module, names),
                    init_lora_weights=True,
                )
                _add_lora(module, config)
            self._activate(module, POLICY)

    def _go_on_from_loaded_lora(self, module: Any, options: LoraOptions) -> None:
        """Keep a frozen copy of a component's loaded LoRA as the reference."""
        loaded = module.peft_config[POLICY]
        if loaded.r != options.rank:
            raise ValueError(
                f"lora rank: the loaded adapter has {loaded.r}, want the same, got {options.rank}"
            )
        if options.alpha not in (None, loaded.lora_alpha):
            raise ValueError(
                f"lora alpha: the loaded adapter has {loaded.lora_alpha}, want the same, "
                f"got {options.alpha}"
            )
        self.reference = "start"
        # Copies that an earlier training has left.
        if old := [name for name in (START, REFRESHED) if name in module.peft_config]:
            module.delete_adapters(old)
        _copy_lora(module, START)

    def train_full(self) -> None:
        """Train every weight of the trainable components, against a frozen copy.

        Raises:
            ValueError: a LoRA is loaded.
        """
        self._require_no_foreign_lora()
        if any(has_policy(unwrap(module)) for module in self.trainable.values()):
            raise ValueError(
                "lora: null trains every weight, but a LoRA is loaded; "
                "go on with a LoRA of its rank"
            )
        self._freeze()
        self.reference_copies = {
            name: copy.deepcopy(module) for name, module in self.trainable.items()
        }
        self.reference = "copy"
        for module in self.trainable.values():
            module.requires_grad_(True)

    def restore_weights(self) -> None:
        """Go back to the weights before ``train_lora`` or ``train_full``.

        An adapter that was loaded earlier stays.
        """
        for name, module in self.trainable.items():
            inner = unwrap(module)
            adapters = getattr(inner, "peft_config", {})
            if REFRESHED in adapters:
                inner.delete_adapters([REFRESHED])
            if START in adapters:
                from peft import get_peft_model_state_dict, set_peft_model_state_dict

                began = get_peft_model_state_dict(inner, adapter_name=START)
                set_peft_model_state_dict(inner, began, POLICY)
                inner.delete_adapters([START])
            elif POLICY in adapters:
                inner.unload_lora()
            if name in self.reference_copies:
                inner.load_state_dict(self.reference_copies[name].state_dict())
            self.trainable[name] = inner
        self.reference_copies = {}
        self.reference = "off"
        self._freeze()

    def drop_lora(self) -> None:
        """Remove a LoRA that was loaded, or is being trained."""
        self.restore_weights()
        for module in map(unwrap, self.trainable.values()):
            if has_policy(module):
                module.unload_lora()

    # -- the frozen reference

    def refresh_reference(self) -> None:
        """Let the reference be what the policy is now: a frozen copy of its LoRA.

        Raises:
            ValueError: every weight is trained, or none; then there is no LoRA to copy.
        """
        networks = [unwrap(module) for module in self.trainable.values()]
        if not all(map(has_policy, networks)):
            raise ValueError(
                "a refreshed reference is a copy of the LoRA, and none is trained; want model.lora"
            )
        for module in networks:
            _copy_lora(module, REFRESHED)
            self._activate(module, POLICY)
        self.reference = "refreshed"

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, ``predict`` runs the frozen reference; gradients are off."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            # Nested: the outer one restores the policy.
            if self._as_reference:
                yield
                return
            self._as_reference = True
            stack.callback(setattr, self, "_as_reference", False)
            if self.reference == "copy":
                self._run_copies(stack)
            for module in map(unwrap, self.trainable.values()):
                if self.reference == "off" and has_policy(module):
                    module.disable_adapters()
                    stack.callback(module.enable_adapters)
                elif self.reference in ("start", "refreshed"):
                    self._activate(module, self.reference)
                    stack.callback(self._activate, module, POLICY)
            yield

    @contextmanager
    def as_began(self) -> Iterator[None]:
        """Inside, ``predict`` runs what training began with, whatever the reference is by now."""
        networks = [unwrap(module) for module in self.trainable.values()]
        started = any(START in getattr(network, "peft_config", {}) for network in networks)
        reference = self.reference
        self.reference = "copy" if self.reference_copies else "start" if started else "off"
        try:
            with self.as_reference():
                yield
        finally:
            self.reference = reference

    def _run_copies(self, stack: ExitStack) -> None:
        """Put the copies in the place of the trained modules, until the stack closes."""
        for module in self.reference_copies.values():
            module.to(self.device)
        stack.callback(self.offload_copies)
        policy = self.trainable
        self.trainable = {**self.reference_copies}
        stack.callback(setattr, self, "trainable", policy)

    # -- inside

    def _first_parameter(self) -> nn.Parameter:
        return next(next(iter(self.trainable.values())).parameters())

    def _require_no_foreign_lora(self) -> None:
        """Refuse a LoRA of another name.

        Ours would be switched on in its place, in the policy and in the reference.
        """
        for name, module in self.trainable.items():
            loaded = getattr(unwrap(module), "peft_config", {}).keys()
            if foreign := sorted(loaded - set(OURS)):
                raise ValueError(
                    f"{name}: has the LoRA {foreign} loaded; "
                    "fuse it into the weights or unload it first"
                )

    def _freeze(self) -> None:
        for module in self.components().values():
            module.requires_grad_(False).eval()

    @staticmethod
    def _activate(module: nn.Module, adapter: str) -> None:
        """Run one LoRA of a component; only the policy is trained, never a frozen one."""
        module.set_adapter(adapter)  # type: ignore[operator]
        for name, parameter in module.named_parameters():
            if any(f".{each}." in name for each in OURS):
                parameter.requires_grad_(f".{POLICY}." in name)


def has_policy(module: nn.Module) -> bool:
    """Whether a component holds the LoRA that is trained."""
    return POLICY in getattr(module, "peft_config", {})


def _copy_lora(module: Any, name: str) -> None:
    """Make the LoRA ``name`` equal to the policy's, in its precision; add a missing one."""
    if name not in module.peft_config:
        with warnings.catch_warnings():
            already = "Already found a `peft_config` attribute"
            warnings.filterwarnings("ignore", already, UserWarning)
            module.add_adapter(copy.deepcopy(module.peft_config[POLICY]), adapter_name=name)
    parameters = dict(module.named_parameters())
    for key, parameter in parameters.items():
        if f".{name}." in key:
            # A clone: the policy goes on learning in its own tensors.
            original = parameters[key.replace(f".{name}.", f".{POLICY}.")]
            parameter.data = original.detach().clone()


def _add_lora(module: Any, config: Any) -> None:
    """Add a new LoRA to a component; where peft refuses, leave the component as it was."""
    try:
        module.add_adapter(config, adapter_name=POLICY)
    except ValueError as error:
        # diffusers marks a component as adapted before it knows that the names fit
        if not getattr(module, "peft_config", None):
            module._hf_peft_config_loaded = False
        raise ValueError(f"lora target_modules: {error}") from error


def unwrap(module: nn.Module) -> Any:
    """The module inside DDP and torch.compile wrappers, in whatever order they were put around it.

    ``accelerate.utils.extract_model_from_parallel`` leaves a compiled module inside DDP wrapped.
    """
    while True:
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner
