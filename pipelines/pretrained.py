"""What the adapters of diffusers pipelines share: texts encoded once, guidance in one batch,
exports both ways.

A family says how texts become tensors, how its network is called, and what its pipeline does to
latents; see ``stable_diffusion.py`` for the shortest whole one.
"""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .base import Condition, Guidance, Model
from .exports import LORA_FILE, LORA_SAFE, Exports, ordered, quiet
from .process import Flow
from .prompt_cache import PromptCache, fingerprint
from .schedules import ddim, euler
from .trainable import POLICY, unwrap

TOKENIZER_LOG = "transformers.tokenization_utils_base"
WORTH_CACHING = 50_000_000  # parameters of text encoders; smaller ones are faster than a disk
NEGATIVE = "negative_"
Self = TypeVar("Self", bound="Pretrained")


class Pretrained(Exports, Model):
    """A diffusers pipeline behind the Model contract.

    In a condition, ``negative_NAME`` is what classifier-free guidance puts in the place of NAME; a
    tensor without one is the same on both sides. ``guidances`` are the scales a family knows, with
    their defaults: a bare number is the first. "text" is classifier-free; what is "embedded" is an
    input of the network, the tensor ``guidance``.
    """

    guidances: Mapping[str, float] = MappingProxyType({"text": 1.0})
    default_lora_targets: str | tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    default_negative: str | None = ""  # None: zeros in the place of an encoded text
    patch_size = 1
    template = ""  # what a family puts before a prompt, and not before a negative text
    one_by_one = False  # the pipeline's own call takes one prompt at a time

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self._texts: dict[str, dict[str, Tensor]] = {}
        self._negatives: dict[str, dict[str, Tensor]] = {}
        self._fingerprint: str | None = None
        weights = sum(
            p.numel() for encoder in self.text_encoders().values() for p in encoder.parameters()
        )
        self.prompt_cache = PromptCache() if weights >= WORTH_CACHING else None
        self._warned = self._freed = False

    # -- what a family says

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of one row a text, of the same width whatever the text."""

    def encode_negatives(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The same of negative texts, for a family that encodes those in another way; of the same
        widths too.
        """
        return self.encode_texts(texts)

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """One call of the network. x (B, *latent) in its dtype, t (B,) process time, tensors of B
        rows.
        """

    def inputs(
        self, count: int, height: int, width: int, num_frames: int, **inputs: Any
    ) -> dict[str, Tensor]:
        """Tensors that no text gives: sizes, control maps, source images. ``count`` rows each."""
        if inputs:
            raise ValueError(f"{type(self).__name__} takes no {sorted(inputs)}")
        return {}

    def exact_scheduler(self) -> Any:
        """A scheduler for the pipeline whose steps are those of eta = 0, on the grid of its own."""
        return (euler if isinstance(self.process, Flow) else ddim)(self.pipeline.scheduler)

    def call(self, latents: Tensor, guidance: Guidance, **inputs: Any) -> dict[str, Any]:
        """Keywords with which the pipeline's own call, from these latents, draws what eta = 0 draws
        here.
        """
        options = {"latents": latents, "guidance_scale": self.scales(guidance)["text"], **inputs}
        if hasattr(self, "max_sequence_length"):
            options["max_sequence_length"] = self.max_sequence_length
        return options

    @property
    def text_limit(self) -> tuple[Any, int]:
        """(tokenizer, tokens) beyond which a prompt is cut by every encoder."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    # -- the contract

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
        against: list[str | None]
        against = [negative] * len(prompts) if isinstance(negative, str | None) else list(negative)
        against = [self.default_negative if text is None else text for text in against]
        texts = self._encode(prompts)
        negatives = self._encode([text for text in against if text is not None], negative=True)
        names = next(iter(texts.values()), {})
        tensors = {name: torch.stack([texts[text][name] for text in prompts]) for name in names}
        for name in names:
            zeros = torch.zeros_like(tensors[name][0])
            rows = [zeros if text is None else negatives[text][name] for text in against]
            tensors[NEGATIVE + name] = torch.stack(rows)
        tensors |= self.inputs(len(prompts), height, width, num_frames, **inputs)
        return Condition(tuple(prompts), tensors, shape)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        scales = self.scales(guidance)
        scale = scales.get("text", 1.0)
        x = x_t.to(self.dtype)
        t = t.to(x_t.device).expand(len(x_t))
        with_text = {
            name: value
            for name, value in condition.tensors.items()
            if not name.startswith(NEGATIVE)
        }
        if "embedded" in scales:
            with_text["guidance"] = torch.full((len(x),), scales["embedded"], device=x.device)
        if scale <= 1:
            return self.denoise(x, t, self._ready(with_text))
        without_text = {
            name: condition.tensors.get(NEGATIVE + name, value) for name, value in with_text.items()
        }
        both = {name: torch.cat([without_text[name], value]) for name, value in with_text.items()}
        without, with_ = self.denoise(
            torch.cat([x, x]), torch.cat([t, t]), self._ready(both)
        ).chunk(2)
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
            raise ValueError(
                f"guidance: want a number, or some of {sorted(self.guidances)}, got {dict(guidance)}"
            )
        return {**self.guidances, **guidance}

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
        """The VAE's raw latents as media in [-1, 1], as the VAE shapes them."""
        media: Tensor = self.pipeline.vae.decode(raw, return_dict=False)[0]
        return media

    def encode(self, media: Tensor) -> Tensor:
        vae = self.pipeline.vae
        raw: Tensor = vae.encode(media.to(vae.device, vae.dtype) * 2 - 1).latent_dist.mean
        mean, std = self.latent_statistics()
        return (raw - mean) / std

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor * self.patch_size
        if height % factor or width % factor or num_frames != 1:
            raise ValueError(
                f"size: want height and width in multiples of {factor} and one frame, got {height}x{width}"
            )
        side = self.pipeline.vae_scale_factor
        config = self.pipeline.vae.config
        channels = (
            config.z_dim if "z_dim" in config else config.latent_channels
        )  # video VAEs call them z
        return (channels, height // side, width // side)

    def forget(self) -> None:
        """Encoded texts; the next ones are encoded anew."""
        self._texts.clear()
        self._negatives.clear()

    def to(self: Self, device: torch.device | str) -> Self:
        for known in (self._texts, self._negatives):
            known.update({text: _moved(rows, device) for text, rows in known.items()})
        super().to(device)
        return self

    def free_text_encoders(self, prompts: Sequence[str] = ()) -> None:
        """Encode prompts, and drop the text encoders: only what was encoded so far can be drawn
        from then on.
        """
        self._encode(prompts)
        if self.default_negative is not None:
            self._encode([self.default_negative], negative=True)
        if self.prompt_cache is not None:
            self._key()  # for which they are needed
        self.pipeline.register_modules(**dict.fromkeys(self.text_encoders()))
        self._freed = True

    def _ready(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """In the network's dtype; integers and masks stay what they are."""
        return {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in tensors.items()
        }

    # -- texts

    def text_encoders(self) -> dict[str, Any]:
        """The pipeline's text encoders, by component name."""
        return {
            name: part
            for name, part in self.components().items()
            if name.startswith("text_encoder")
        }

    @torch.no_grad()
    def _encode(
        self, texts: Sequence[str], negative: bool = False, batch_size: int = 32
    ) -> dict[str, dict[str, Tensor]]:
        """The tensors of texts. Each is encoded once in the model's life; by large encoders, once
        on this machine.
        """
        known = self._texts
        encode = self.encode_texts
        role = ""
        if negative and type(self).encode_negatives is not Pretrained.encode_negatives:
            known = self._negatives
            encode = self.encode_negatives
            role = NEGATIVE
        new = sorted(set(texts) - known.keys())
        if self.prompt_cache is not None:
            for text, found in (
                (text, self.prompt_cache.get(role + self._key(), text)) for text in new
            ):
                if found is not None:
                    known[text] = _moved(found, self.device)
            new = [text for text in new if text not in known]
        if new and self._freed:
            raise ValueError(
                f"prompt {new[0]!r}: the text encoders were freed before it was encoded"
            )
        tokenizer, limit = self.text_limit
        long = [text for text in new if len(tokenizer.tokenize(text)) + 2 > limit]
        if long and not self._warned:
            self._warned = True
            warnings.warn(
                f"prompts beyond {limit} tokens are cut, the first: {long[0]!r}", stacklevel=3
            )
        with quiet(type(self.pipeline).__module__, TOKENIZER_LOG):
            for start in range(0, len(new), batch_size):
                part = new[start : start + batch_size]
                encoded = encode(part)
                rows = {
                    text: {name: value[i] for name, value in encoded.items()}
                    for i, text in enumerate(part)
                }
                known |= rows
                if self.prompt_cache is not None:
                    self.prompt_cache.put(role + self._key(), rows)
        return known

    def _key(self) -> str:
        if self._fingerprint is None:
            tokenizers = [
                part
                for name, part in self.pipeline.components.items()
                if name.startswith("tokenizer") and part
            ]
            words = [
                (sorted(part.get_vocab().items()), part.model_max_length) for part in tokenizers
            ]
            self._fingerprint = fingerprint(
                self.text_encoders(), type(self).__name__, self.text_limit[1], words, self.template
            )
        return self._fingerprint


def pictures(
    name: str, what: str, value: Tensor | None, count: int, height: int, width: int
) -> Tensor:
    """An input of ``encode_prompts``, once it is ``count`` pictures of the size to be made."""
    if value is None or value.shape != (count, 3, height, width):
        got = None if value is None else tuple(value.shape)
        raise ValueError(f"{name}: want {what}, {(count, 3, height, width)}, got {got}")
    return value


def _moved(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


class OwnLora(Pretrained):
    """LoRA files are the component's own: ``component.load_lora_adapter(folder, prefix=None)``
    reads them.
    """

    def lora_folder(self, component: str) -> str:
        return component

    def save_lora(self, component: str, folder: Path) -> None:
        network = unwrap(self.trainable[component])
        ordered(network.peft_config[POLICY])
        network.save_lora_adapter(folder, POLICY, weight_name=LORA_FILE)

    def load_lora(self, component: str, folder: Path, adapter: str) -> None:
        getattr(self.pipeline, component).load_lora_adapter(
            folder, prefix=None, adapter_name=adapter, **LORA_SAFE
        )


class Video(Pretrained):
    """Media are videos whose VAE has ``stride``, frames and pixels, to one latent, and the first
    frame alone.
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
                f"size: want height and width in multiples of {patch} and a multiple of {frames} frames plus one, "
                f"got {height}x{width}, {num_frames} frames"
            )
        config = self.pipeline.vae.config
        channels = config.z_dim if "z_dim" in config else config.latent_channels
        return (channels, (num_frames - 1) // frames + 1, height // side, width // side)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        if frames is not None:
            raise ValueError(
                "frames: this VAE reads all frames before the one it makes, so none can be left out"
            )
        return super().decode(latents).transpose(1, 2)

    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media.transpose(1, 2))
