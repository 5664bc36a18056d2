"""What was trained, as files that diffusers itself can load, and back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .trainable import POLICY, Trainable, unwrap

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_LOGS = (
    "diffusers.loaders.peft",
    "diffusers.loaders.lora_pipeline",
    "diffusers.loaders.lora_base",
)
LORA_SAFE: dict[str, Any] = {
    "weight_name": LORA_FILE,
    "use_safetensors": True,
}  # never a pickle in its place
TRIAL = "trial"  # what a LoRA is called until it is known to fit


class Exports(Trainable):
    """Writes and reads the trained components of a diffusers pipeline."""

    def lora_folder(self, component: str) -> str:
        """Where in an export a component's LoRA goes."""
        return "."

    def lora_name(self, component: str) -> str:
        """What the pipeline's ``save_lora_weights`` calls a component."""
        return component

    def save_lora(self, component: str, folder: Path) -> None:
        """Write a component's policy so that the pipeline's ``load_lora_weights`` finds it."""
        from peft import get_peft_model_state_dict

        network = unwrap(self.trainable[component])
        # peft's own names throughout: diffusers' older ones cover attention alone, and it loads no
        # mixture of both.
        layers = get_peft_model_state_dict(network, adapter_name=POLICY)
        name = self.lora_name(component)
        options = {f"{name}_lora_layers": layers}
        options[f"{name}_lora_adapter_metadata"] = ordered(network.peft_config[POLICY]).to_dict()
        self.pipeline.save_lora_weights(folder, **options)

    def load_lora(self, component: str, folder: Path, adapter: str) -> None:
        """Load such a file into the component under a name."""
        self.pipeline.load_lora_weights(folder, adapter_name=adapter, **LORA_SAFE)

    def export(self, folder: Path) -> None:
        for component, module in self.trainable.items():
            if POLICY in getattr(unwrap(module), "peft_config", {}):
                self.save_lora(component, folder / self.lora_folder(component))
            else:
                unwrap(module).save_pretrained(folder / component)

    def reload(self, folder: Path) -> None:
        if all(
            (folder / self.lora_folder(component) / LORA_FILE).is_file()
            for component in self.trainable
        ):
            changed = self._reload_lora(folder)
        elif all((folder / name).is_dir() for name in self.trainable):
            changed = sum(self._reload_full(folder, name) for name in self.trainable) > 0
        else:
            raise ValueError(
                f"{folder}: no export (want {LORA_FILE} or a folder {', '.join(self.trainable)})"
            )
        if not changed:
            raise ValueError(
                f"{folder}: loading it changes nothing (every update is zero, or no name matches)"
            )

    def _reload_full(self, folder: Path, name: str) -> bool:
        component = getattr(self.pipeline, name)
        weights = type(component).from_pretrained(folder / name).state_dict()
        own = component.state_dict()
        if {key: value.shape for key, value in weights.items()} != {
            key: value.shape for key, value in own.items()
        }:
            raise ValueError(f"{folder}: its {name} is of another shape than this model's")
        changed = any(
            not torch.equal(own[key], value.to(own[key])) for key, value in weights.items()
        )
        component.load_state_dict(weights)
        return changed

    def _reload_lora(self, folder: Path) -> bool:
        """Load a LoRA whole or not at all; whether it changes anything. diffusers would load what
        fits and only log.

        It is tried under another name first, so that a file that does not fit leaves the one in use
        alone.
        """
        from peft import get_peft_model_state_dict
        from safetensors import safe_open

        parts: dict[str, Any] = {name: getattr(self.pipeline, name) for name in self.trainable}
        training = [part for part in parts.values() if POLICY in getattr(part, "peft_config", {})]
        wanted: list[str] = []
        loaded: dict[str, Tensor] = {}
        try:
            for component, part in parts.items():
                place = folder / self.lora_folder(component)
                with safe_open(place / LORA_FILE, "pt") as file:
                    wanted += [
                        key
                        for key in file.keys()  # noqa: SIM118
                        if not key.startswith(("text_encoder", "lora_te"))
                    ]
                with quiet(*LORA_LOGS):
                    self.load_lora(component, place, TRIAL)
                if TRIAL in getattr(part, "peft_config", {}):
                    state = get_peft_model_state_dict(part, adapter_name=TRIAL)
                    loaded |= {f"{component}.{key}": value.clone() for key, value in state.items()}
        # an untrusted file: torch, safetensors and diffusers each have errors of their own
        except Exception as error:
            raise ValueError(
                f"{folder}: its LoRA does not fit this model: {' '.join(str(error).split())}"
            ) from error
        finally:
            for part in parts.values():
                if part in training:  # first: deleting the active one warns
                    self._activate(part, POLICY)
                if TRIAL in getattr(part, "peft_config", {}):
                    part.delete_adapters([TRIAL])
        if len(loaded) != sum(not name.endswith(".alpha") for name in wanted):
            raise ValueError(
                f"{folder}: only {len(loaded)} of its {len(wanted)} LoRA tensors fit this model"
            )
        for part in training:
            part.delete_adapters([POLICY])
        for component in parts:
            with quiet(*LORA_LOGS):
                self.load_lora(component, folder / self.lora_folder(component), POLICY)
        for part in training:
            self._activate(part, POLICY)
        return any(bool(value.any()) for name, value in loaded.items() if "lora_B" in name)


def ordered(config: Any) -> Any:
    """A LoRA's configuration whose names stand in one order, so that the same LoRA makes the same
    file.
    """
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    return config


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without the libraries' own warning for every prompt: ours says it once."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
