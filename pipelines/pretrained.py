"""What the adapters of diffusers pipelines share: guidance in one batch, and the VAE.

A family says how texts become tensors, how its network is called, and what its pipeline does to
latents; see ``families/stable_diffusion.py`` for the shortest whole one.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .base import Condition, Guidance, Model
from .exports import LORA_FILE, LORA_SAFE, Exports, ordered
from .process import Flow
from .schedules import ddim, euler
from .texts import NEGATIVE, Texts
from .trainable import POLICY, unwrap


class Pretrained(Texts, Exports, Model):
    """A diffusers pipeline behind the Model contract.

    In a condition, classifier-free guidance puts ``negative_NAME`` in the place of NAME; a tensor
    without a negative is equal on both sides.

    Attributes:
        guidances: the scales that a family knows, with their defaults; a bare number is the first.
            "text" is classifier-free; "embedded" is an input of the network, the tensor
            ``guidance``.
        patch_size: latents of a side that are one token of the network.
        one_by_one: the pipeline's own call takes one prompt at a time.
    """

    guidances: Mapping[str, float] = MappingProxyType({"text": 1.0})
    default_lora_targets: str | tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    patch_size = 1
    one_by_one = False

    # -- what a family says

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """One call of the network.

        Args:
            x: (B, *latent), in the network's dtype.
            t: (B,), process time.
            tensors: of the condition, B rows each.
        """

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        """Tensors that no text gives: sizes, control maps, source images. ``count`` rows each."""
        if inputs:
            raise ValueError(f"{type(self).__name__} takes no {sorted(inputs)}")
        return {}

    def exact_scheduler(self) -> Any:
        """A scheduler for the pipeline whose steps are those of eta = 0, on the pipeline's grid."""
        exact = euler if isinstance(self.process, Flow) else ddim
        return exact(self.pipeline.scheduler)

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        """Keyword arguments with which ``pipeline(...)`` reproduces our eta = 0 sample.

        The pipeline starts from the same latents.
        """
        options = {"latents": latents, "guidance_scale": self.scales(guidance)["text"], **inputs}
        if hasattr(self, "max_sequence_length"):
            options["max_sequence_length"] = self.max_sequence_length
        return options

    # -- conditioning

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
        height = height or self.default_size[0]
        width = width or self.default_size[1]
        num_frames = num_frames or self.default_frames
        shape = self.latent_shape(height, width, num_frames)

        # Every prompt has a negative of its own, so that rows can be chosen and repeated.
        against: list[str | None]
        against = [negative] * len(prompts) if isinstance(negative, str | None) else list(negative)
        negatives = [self.default_negative if text is None else text for text in against]
        tensors = self.text_tensors(prompts, negatives)
        tensors |= self.inputs(len(prompts), height, width, num_frames, **inputs)
        return Condition(tuple(prompts), tensors, shape)

    # -- the network

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        scales = self.scales(guidance)
        scale = scales.get("text", 1.0)
        x = x_t.to(self.dtype)
        t = t.to(x_t.device).expand(len(x_t))

        given = condition.tensors
        with_text = {name: v for name, v in given.items() if not name.startswith(NEGATIVE)}
        # A guidance-distilled network reads the scale as an input.
        if "embedded" in scales:
            with_text["guidance"] = torch.full((len(x),), scales["embedded"], device=x.device)
        # At 1, guidance is the output with the text: half of the rows are saved.
        if scale <= 1:
            return self.denoise(x, t, self._ready(with_text))

        # Classifier-free guidance: both sides in one call, the negative one first.
        without_text = {name: given.get(NEGATIVE + name, v) for name, v in with_text.items()}
        both = {name: torch.cat([without_text[name], v]) for name, v in with_text.items()}
        output = self.denoise(torch.cat([x, x]), torch.cat([t, t]), self._ready(both))
        without, with_ = output.chunk(2)
        return self.guided(without, with_, scale)

    def guided(self, without: Tensor, with_text: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance of two outputs (Ho & Salimans 2022)."""
        return without + scale * (with_text - without)

    def rows_per_sample(self, guidance: Guidance) -> int:
        return 2 if self.scales(guidance).get("text", 1.0) > 1 else 1

    def scales(self, guidance: Guidance) -> dict[str, float]:
        """Every scale by name, from a number or a mapping."""
        if isinstance(guidance, float | int):
            guidance = {next(iter(self.guidances)): guidance}
        if not guidance or guidance.keys() - self.guidances.keys():
            names = sorted(self.guidances)
            raise ValueError(f"guidance: want a number, or some of {names}, got {dict(guidance)}")
        return {**self.guidances, **guidance}

    def _ready(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in the network's dtype; integers and masks stay what they are."""
        dtype = self.dtype
        return {name: v.to(dtype) if v.is_floating_point() else v for name, v in tensors.items()}

    # -- the VAE

    def latent_statistics(self) -> tuple[Any, Any]:
        """(mean, std) of the VAE's raw latents, which the network sees standardised."""
        config = self.pipeline.vae.config
        return getattr(config, "shift_factor", None) or 0.0, 1 / config.scaling_factor

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        if frames is not None:
            raise ValueError("frames: these are pictures")
        vae = self.pipeline.vae
        mean, std = self.latent_statistics()
        raw = latents.to(vae.dtype) * std + mean
        return (self.decode_raw(raw) / 2 + 0.5).clamp(0, 1)

    def decode_raw(self, raw: Tensor) -> Tensor:
        """The VAE's raw latents as media in [-1, 1], in the VAE's own layout."""
        media: Tensor = self.pipeline.vae.decode(raw, return_dict=False)[0]
        return media

    def encode(self, media: Tensor) -> Tensor:
        vae = self.pipeline.vae
        raw: Tensor = vae.encode(media.to(vae.device, vae.dtype) * 2 - 1).latent_dist.mean
        mean, std = self.latent_statistics()
        return (raw - mean) / std

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        side = self.pipeline.vae_scale_factor
        factor = side * self.patch_size
        if height % factor or width % factor or num_frames != 1:
            raise ValueError(
                f"size: want height and width in multiples of {factor} and one frame, "
                f"got {height}x{width}"
            )
        return (self._channels(), height // side, width // side)

    def _channels(self) -> int:
        """Channels of the latents, which VAEs of videos call z."""
        config = self.pipeline.vae.config
        channels: int = config.z_dim if "z_dim" in config else config.latent_channels
        return channels


class OwnLora(Pretrained):
    """A family whose LoRA files are the component's own.

    ``component.load_lora_adapter(folder, prefix=None)`` reads them.
    """

    def lora_folder(self, component: str) -> str:
        return component

    def save_lora(self, component: str, folder: Path) -> None:
        network = unwrap(self.trainable[component])
        ordered(network.peft_config[POLICY])
        network.save_lora_adapter(folder, POLICY, weight_name=LORA_FILE)

    def load_lora(self, component: str, folder: Path, adapter: str) -> None:
        network = getattr(self.pipeline, component)
        network.load_lora_adapter(folder, prefix=None, adapter_name=adapter, **LORA_SAFE)


class Video(Pretrained):
    """A family of videos.

    Attributes:
        stride: (frames, pixels of a side) that the VAE makes one latent; the first frame is a
            latent alone.
        max_sequence_length: tokens of a text.
    """

    stride: tuple[int, int]
    max_sequence_length: int

    @property
    def text_limit(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer, self.max_sequence_length

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        frames, side = self.stride
        patch = side * self.patch_size
        if height % patch or width % patch or num_frames % frames != 1 % frames:
            raise ValueError(
                f"size: want height and width in multiples of {patch} and a multiple of {frames} "
                f"frames plus one, got {height}x{width}, {num_frames} frames"
            )
        return (self._channels(), (num_frames - 1) // frames + 1, height // side, width // side)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        if frames is not None:
            raise ValueError(
                "frames: this VAE reads all frames before the one it makes, so none can be left out"
            )
        return super().decode(latents).transpose(1, 2)

    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media.transpose(1, 2))


def pictures(
    name: str, what: str, value: Tensor | None, count: int, height: int, width: int
) -> Tensor:
    """An input of ``encode_prompts``, once it is ``count`` pictures of the size to be made.

    Raises:
        ValueError: it is missing, or of another shape than (count, 3, height, width).
    """
    wanted = (count, 3, height, width)
    if value is None or value.shape != wanted:
        got = None if value is None else tuple(value.shape)
        raise ValueError(f"{name}: want {what}, {wanted}, got {got}")
    return value
