"""The Model contract: one adapter a family, wrapping a real diffusers pipeline, unmodified."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .process import Process
from .trainable import Trainable

Guidance = float | Mapping[str, float]


@dataclass(frozen=True)
class Condition:
    """The inputs of a denoiser besides (x_t, t); indexing and repeating go by rows.

    Every tensor has B rows.

    ``latent_shape`` is the shape of one sample's latents, (C, H, W) or (C, F, H, W), so that a
    condition alone is enough to start sampling.
    """

    prompts: tuple[str, ...]
    tensors: dict[str, Tensor]
    latent_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if len(tensor) != len(self.prompts):
                raise ValueError(
                    f"condition {name}: want {len(self.prompts)} rows, got {tuple(tensor.shape)}"
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Condition":
        index = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        tensors = {name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()}
        return Condition(tuple(self.prompts[i] for i in index), tensors, self.latent_shape)

    def repeat(self, times: int) -> "Condition":
        """Each row ``times`` times, siblings adjacent."""
        return self[torch.arange(len(self)).repeat_interleave(times)]

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Rows of several conditions of one size bucket, in order."""
        if len({part.latent_shape for part in parts}) != 1:
            raise ValueError(
                f"conditions of several sizes: {[part.latent_shape for part in parts]}"
            )
        tensors = {
            name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors
        }
        return Condition(
            tuple(p for part in parts for p in part.prompts), tensors, parts[0].latent_shape
        )


class Model(Trainable, ABC):
    """A generator: how to condition it, run it, and turn latents into pictures and back.

    Latents are unpacked, (B, C, H, W) or (B, C, F, H, W); packing, position ids and per-frame
    repetition happen inside ``predict``, from the latents' shape.
    """

    process: Process
    default_size: tuple[int, int] = (512, 512)
    default_frames: int = 1
    # Pictures that ``encode_prompts`` wants besides texts.
    required_inputs: tuple[str, ...] = ()
    # Frames of a video in a second.
    frame_rate: int = 8

    # -- conditioning and shapes

    @abstractmethod
    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        """Pairs (t, s) from noise to clean, (n, 2) float64 on the CPU, in the process's unit."""

    @abstractmethod
    def encode_prompts(
        self,
        prompts: Sequence[str],
        negative: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        **inputs: Any,
    ) -> Condition:
        """The inputs that do not change along a trajectory, computed once.

        ``None`` is the family's own default, of sizes and frames too. Texts are padded to a fixed
        length, so that rows of several calls concatenate. ``inputs``: control maps, source images
        …; a family refuses those it has not.
        """

    @abstractmethod
    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        """Shape of one sample's latents."""

    # -- the network

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        """The guided output in the process's convention, of x_t's shape.

        ``t`` is (B,) or (), process time.
        """

    @abstractmethod
    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Latents -> media in [0, 1], (B, 3, H, W) or (B, F, 3, H, W); differentiable.

        ``frames`` picks some of a video where the VAE works frame by frame; other families refuse
        it.
        """

    @abstractmethod
    def encode(self, media: Tensor) -> Tensor:
        """Media in [0, 1] -> latents; the encoder's mean, no sampling."""

    def rows_per_sample(self, guidance: Guidance) -> int:
        """Rows of the network that one row of ``predict`` takes, two where guidance compares."""
        return 1

    # -- taking the result away

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write what was trained so that ``reload``, and diffusers itself, can load it."""

    @abstractmethod
    def reload(self, folder: Path) -> None:
        """Load an export into this model. A reload that changes nothing is a ValueError."""
