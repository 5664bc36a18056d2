"""What of a generator is trained, and the frozen reference that it is compared with."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

Self = TypeVar("Self", bound="Trainable")
Reference = Literal["off", "start", "copy", "refreshed"]
# LoRAs: the trained one, and it as it began and as it was later
POLICY = "policy"
START = "start"
REFRESHED = "refreshed"


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adaptation of every trainable component (Hu et al. 2021), by peft."""

    rank: int
    alpha: float | None = None  # None: the rank, so that the update is B A x
    target_modules: str | tuple[str, ...] | None = (
        None  # names, or one regular expression; None: the family's default
    )


class Trainable:
    """The networks of a pipeline that are trained, their LoRAs and their references.

    ``trainable`` maps component names to the modules that ``predict`` runs: what is put there (by
    DDP, by torch.compile) is what runs. ``reference_copies`` are their frozen references in full
    training, empty otherwise.
    """

    trainable: dict[str, nn.Module]
    default_lora_targets: str | tuple[str, ...] = ()

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self.reference: Reference = "off"
        self.reference_copies: dict[str, nn.Module] = {}
        # the copies wait on the CPU and come to the device when they run
        self.reference_on_cpu = False
        self._as_reference = False

    @property
    def device(self) -> torch.device:
        return next(next(iter(self.trainable.values())).parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(next(iter(self.trainable.values())).parameters()).dtype

    def components(self) -> dict[str, nn.Module]:
        """Every module of the pipeline, trained or not."""
        return {
            name: part
            for name, part in self.pipeline.components.items()
            if isinstance(part, nn.Module)
        }

    def to(self: Self, device: torch.device | str) -> Self:
        for module in (
            *self.components().values(),
            *(() if self.reference_on_cpu else self.reference_copies.values()),
        ):
            module.to(device)
        return self

    def offload_copies(self) -> None:
        """Send what waits on the CPU there."""
        if self.reference_on_cpu:
            for module in self.reference_copies.values():
                module.to("cpu")

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in a fixed order."""
        return [
            p for module in self.trainable.values() for p in module.parameters() if p.requires_grad
        ]

    def train_lora(self, options: LoraOptions) -> None:
        """Freeze everything and add a LoRA, initially the identity, to each trainable component.

        A LoRA already loaded under the name "policy" is what training goes on from; it is also
        kept, frozen, as the reference.
        """
        from peft import LoraConfig

        self._require_no_foreign_lora()
        self._freeze()
        chosen = options.target_modules or self.default_lora_targets
        targets = chosen if isinstance(chosen, str) else list(chosen)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha or options.rank,
            target_modules=targets,
            init_lora_weights=True,
        )
        for module in map(unwrap, self.trainable.values()):
            if POLICY in getattr(module, "peft_config", {}):
                loaded = module.peft_config[POLICY].r
                if loaded != options.rank:
                    raise ValueError(
                        f"lora rank: the loaded adapter has {loaded}, want the same, got {options.rank}"
                    )
                alpha = module.peft_config[POLICY].lora_alpha
                if options.alpha not in (None, alpha):
                    raise ValueError(
                        f"lora alpha: the loaded adapter has {alpha}, want the same, got {options.alpha}"
                    )
                self.reference = "start"
                if old := [
                    name for name in (START, REFRESHED) if name in module.peft_config
                ]:  # of an earlier training
                    module.delete_adapters(old)
                _copy_lora(module, START)
            else:
                _add_lora(module, config)
            self._activate(module, POLICY)

    def train_full(self) -> None:
        """Train every weight of the trainable components, against a frozen copy."""
        self._require_no_foreign_lora()
        if any(
            POLICY in getattr(unwrap(module), "peft_config", {})
            for module in self.trainable.values()
        ):
            raise ValueError(
                "lora: null trains every weight, but a LoRA is loaded; go on with a LoRA of its rank"
            )
        self._freeze()
        self.reference_copies = {
            name: copy.deepcopy(module) for name, module in self.trainable.items()
        }
        self.reference = "copy"
        for module in self.trainable.values():
            module.requires_grad_(True)

    def refresh_reference(self) -> None:
        """From now on the reference is what the policy is now: a frozen copy of its LoRA.

        Raises:
            ValueError: every weight is trained, or none; then there is no LoRA to copy.
        """
        networks = [unwrap(module) for module in self.trainable.values()]
        if not all(POLICY in getattr(module, "peft_config", {}) for module in networks):
            raise ValueError(
                "a refreshed reference is a copy of the LoRA, and none is trained; want model.lora"
            )
        for module in networks:
            _copy_lora(module, REFRESHED)
            self._activate(module, POLICY)
        self.reference = "refreshed"

    def restore_weights(self) -> None:
        """Back to the weights before ``train_lora`` or ``train_full``; an adapter loaded earlier
        stays.
        """
        for name, module in self.trainable.items():
            inner = unwrap(module)
            adapters = getattr(inner, "peft_config", {})
            if REFRESHED in adapters:
                inner.delete_adapters([REFRESHED])
            if START in adapters:
                from peft import get_peft_model_state_dict, set_peft_model_state_dict

                set_peft_model_state_dict(
                    inner, get_peft_model_state_dict(inner, adapter_name=START), POLICY
                )
                inner.delete_adapters([START])
            elif POLICY in adapters:
                inner.unload_lora()
            if name in self.reference_copies:
                inner.load_state_dict(self.reference_copies[name].state_dict())
            self.trainable[name] = inner
        self.reference_copies, self.reference = {}, "off"
        self._freeze()

    def drop_lora(self) -> None:
        """Remove a LoRA that was loaded, or is being trained."""
        self.restore_weights()
        for module in map(unwrap, self.trainable.values()):
            if POLICY in getattr(module, "peft_config", {}):
                module.unload_lora()

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, ``predict`` runs the frozen reference; gradients are off."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._as_reference:  # nested: whoever came first goes back
                yield
                return
            self._as_reference = True
            stack.callback(setattr, self, "_as_reference", False)
            if self.reference == "copy":
                for module in self.reference_copies.values():
                    module.to(self.device)
                stack.callback(self.offload_copies)
                kept = self.trainable
                self.trainable = {**self.reference_copies}
                stack.callback(setattr, self, "trainable", kept)
            for module in map(unwrap, self.trainable.values()):
                if self.reference == "off" and POLICY in getattr(module, "peft_config", {}):
                    module.disable_adapters()
                    stack.callback(module.enable_adapters)
                elif self.reference in ("start", "refreshed"):
                    self._activate(module, self.reference)
                    stack.callback(self._activate, module, POLICY)
            yield

    def _require_no_foreign_lora(self) -> None:
        """Ours would be switched on in their place, in the policy and in the reference."""
        for name, module in self.trainable.items():
            if foreign := sorted(
                getattr(unwrap(module), "peft_config", {}).keys() - {POLICY, START, REFRESHED}
            ):
                raise ValueError(
                    f"{name}: has the LoRA {foreign} loaded; fuse it into the weights or unload it first"
                )

    def _freeze(self) -> None:
        for module in self.components().values():
            module.requires_grad_(False).eval()

    @staticmethod
    def _activate(module: nn.Module, adapter: str) -> None:
        """Run one LoRA of a component; only the policy is trained, never a frozen one."""
        module.set_adapter(adapter)  # type: ignore[operator]
        for name, parameter in module.named_parameters():
            if any(f".{each}." in name for each in (POLICY, START, REFRESHED)):
                parameter.requires_grad_(f".{POLICY}." in name)


def _copy_lora(module: Any, name: str) -> None:
    """Have the LoRA of that name be what the policy's is now, in its precision."""
    if name not in module.peft_config:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config` attribute", UserWarning
            )
            module.add_adapter(copy.deepcopy(module.peft_config[POLICY]), adapter_name=name)
    parameters = dict(module.named_parameters())
    for key, parameter in parameters.items():
        if f".{name}." in key:
            parameter.data = parameters[key.replace(f".{name}.", f".{POLICY}.")].detach().clone()


def _add_lora(module: Any, config: Any) -> None:
    """A new LoRA, or none: diffusers marks a component as adapted before it knows that the names
    fit.
    """
    try:
        module.add_adapter(config, adapter_name=POLICY)
    except ValueError:
        if not getattr(module, "peft_config", None):
            module._hf_peft_config_loaded = False
        raise


def unwrap(module: nn.Module) -> Any:
    """The module inside DDP and torch.compile wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner
