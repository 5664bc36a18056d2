"""Trained components as files that diffusers itself can load, and back."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .folder_checks import require_sound
from .lora_files import write_plain
from .trainable import POLICY, Trainable, has_policy, unwrap

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_LOGS = (
    "diffusers.loaders.peft",
    "diffusers.loaders.lora_pipeline",
    "diffusers.loaders.lora_base",
)
# A pickle beside the file is never loaded in its place.
LORA_SAFE: dict[str, Any] = {"weight_name": LORA_FILE, "use_safetensors": True}
# The name of a LoRA until it is known to fit.
TRIAL = "trial"


class Exports(Trainable):
    """Writes and reads the trained components of a diffusers pipeline."""

    # -- where a family keeps its LoRA

    def lora_folder(self, component: str) -> str:
        """The folder of a component's LoRA, relative to the export."""
        return "."

    def lora_name(self, component: str) -> str:
        """Name of a component in the pipeline's ``save_lora_weights``."""
        return component

    def save_lora(self, component: str, folder: Path) -> None:
        """Write a component's policy so that the pipeline's ``load_lora_weights`` finds it."""
        from peft import get_peft_model_state_dict

        network = unwrap(self.trainable[component])
        # peft's own names throughout: diffusers' older ones cover attention alone, and diffusers
        # loads no mixture of both.
        layers = get_peft_model_state_dict(network, adapter_name=POLICY)
        about = ordered(network.peft_config[POLICY]).to_dict()
        name = self.lora_name(component)
        options = {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": about}
        self.pipeline.save_lora_weights(folder, **options)

    def load_lora(self, component: str, folder: Path, adapter: str) -> None:
        """Load a file that ``save_lora`` wrote into the component, under the name ``adapter``."""
        self.pipeline.load_lora_weights(folder, adapter_name=adapter, **LORA_SAFE)

    # -- the contract

    def export(self, folder: Path) -> None:
        for component, module in self.trainable.items():
            network = unwrap(module)
            if has_policy(network):
                self.save_lora(component, folder / self.lora_folder(component))
            else:
                network.save_pretrained(folder / component)

    def reload(self, folder: Path) -> None:
        files = [folder / self.lora_folder(component) / LORA_FILE for component in self.trainable]
        if all(file.is_file() for file in files):
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

    # -- all weights of a component

    def _reload_full(self, folder: Path, name: str) -> bool:
        """Load a component's weights; whether they differ from those that it had."""
        component = getattr(self.pipeline, name)
        before = component.state_dict()
        kind = type(component)
        require_sound(folder, {name: [kind.__module__.partition(".")[0], kind.__name__]})
        try:
            after = kind.from_pretrained(folder / name).state_dict()
        # an untrusted folder, as below
        except Exception as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{folder}: its {name} cannot be loaded: {said}") from error
        if _shapes(after) != _shapes(before):
            raise ValueError(f"{folder}: its {name} is of another shape than this model's")
        # Compared before loading, which writes into the tensors of ``before``.
        changed = any(
            not torch.equal(before[key], value.to(before[key])) for key, value in after.items()
        )
        component.load_state_dict(after)
        return changed

    # -- a LoRA

    def _reload_lora(self, folder: Path) -> bool:
        """Load a LoRA whole or not at all; whether it changes anything.

        diffusers would load the tensors that fit, and only log the others. So the file is loaded
        under another name first: one that does not fit leaves the LoRA in use alone.
        """
        with TemporaryDirectory() as temporary:
            plain = Path(temporary)
            try:
                self._write_plain(folder, plain)
                names = self._names_in(plain)
                loaded = self._load_as_trial(plain)
            # an untrusted file: torch, safetensors and diffusers each have errors of their own
            except Exception as error:
                said = " ".join(str(error).split())
                raise ValueError(f"{folder}: its LoRA does not fit this model: {said}") from error
            if len(loaded) != sum(not name.endswith(".alpha") for name in names):
                raise ValueError(
                    f"{folder}: only {len(loaded)} of its {len(names)} LoRA tensors fit this model"
                )
            self._replace_policy(plain)
        return any(bool(value.any()) for name, value in loaded.items() if "lora_B" in name)

    def _write_plain(self, folder: Path, out: Path) -> None:
        """Copies of an export's LoRA files, without what they say of themselves."""
        # Components may share a file.
        for place in {self.lora_folder(component) for component in self.trainable}:
            (out / place).mkdir(parents=True, exist_ok=True)
            write_plain(folder / place / LORA_FILE, out / place / LORA_FILE)

    def _parts(self) -> dict[str, Any]:
        """The pipeline's own modules of the trained components."""
        return {name: getattr(self.pipeline, name) for name in self.trainable}

    def _names_in(self, folder: Path) -> list[str]:
        """Names of the LoRA tensors in an export, but for those of text encoders."""
        from safetensors import safe_open

        names: list[str] = []
        for component in self.trainable:
            with safe_open(folder / self.lora_folder(component) / LORA_FILE, "pt") as file:
                names += file.keys()
        return [name for name in names if not name.startswith(("text_encoder", "lora_te"))]

    def _load_as_trial(self, folder: Path) -> dict[str, Tensor]:
        """Copies of the tensors that the model takes from an export; the model stays as it was."""
        from peft import get_peft_model_state_dict

        loaded: dict[str, Tensor] = {}
        parts = self._parts()
        training = [part for part in parts.values() if has_policy(part)]
        try:
            for component, part in parts.items():
                with quiet(*LORA_LOGS):
                    self.load_lora(component, folder / self.lora_folder(component), TRIAL)
                if _has_trial(part):
                    state = get_peft_model_state_dict(part, adapter_name=TRIAL)
                    loaded |= {f"{component}.{key}": value.clone() for key, value in state.items()}
        finally:
            for part in parts.values():
                # The policy first: peft warns when the active LoRA is deleted.
                if part in training:
                    self._activate(part, POLICY)
                if _has_trial(part):
                    part.delete_adapters([TRIAL])
        return loaded

    def _replace_policy(self, folder: Path) -> None:
        """Load an export as the policy; where one is trained, training goes on with the new one."""
        parts = self._parts()
        training = [part for part in parts.values() if has_policy(part)]
        for part in training:
            part.delete_adapters([POLICY])
        for component in parts:
            with quiet(*LORA_LOGS):
                self.load_lora(component, folder / self.lora_folder(component), POLICY)
        for part in training:
            self._activate(part, POLICY)


def _has_trial(part: Any) -> bool:
    return TRIAL in getattr(part, "peft_config", {})


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def ordered(config: Any) -> Any:
    """Sort the names in a LoRA's configuration, so that the same LoRA makes the same file."""
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    return config


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Inside, the named loggers print errors only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
