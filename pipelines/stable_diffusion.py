"""Stable Diffusion 1.x and 2.x: one text encoder, an epsilon- or v-prediction UNet, a per-image VAE."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .base import POLICY, Condition, Guidance, Model, unwrap
from .process import Diffusion

TOKENIZER_LOG = "transformers.tokenization_utils_base"
LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_LOGS = ("diffusers.loaders.peft", "diffusers.loaders.lora_pipeline", "diffusers.loaders.lora_base")
TRIAL = "trial"  # what a LoRA is called until it is known to fit


def ddim(scheduler: Any) -> DDIMScheduler:
    """DDIM on the pipeline's own noise schedule, spacing and offset, whatever sampler it came with.

    Latent models do not clip samples; DDIM's default would, where the pipeline's own scheduler has no such option.
    """
    options = {} if "clip_sample" in scheduler.config else {"clip_sample": False}
    made: DDIMScheduler = DDIMScheduler.from_config(scheduler.config, **options)
    if made.config.thresholding:
        raise ValueError("scheduler: dynamic thresholding is not supported")
    return made


class StableDiffusion(Model):
    """Adapter of ``diffusers.StableDiffusionPipeline``; trains the UNet."""

    default_lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.trainable = {"unet": pipeline.unet}
        scheduler = ddim(pipeline.scheduler)
        self.process = Diffusion(
            scheduler.alphas_cumprod,
            float(scheduler.final_alpha_cumprod),
            scheduler.config.prediction_type,
            scheduler.config.clip_sample_range if scheduler.config.clip_sample else None,
        )
        latent = pipeline.unet.config.sample_size
        height, width = (latent, latent) if isinstance(latent, int) else latent
        self.default_size = (height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor)
        self._texts: dict[str, Tensor] = {}
        self._warned = False

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        scheduler = ddim(self.pipeline.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        t = scheduler.timesteps.double()
        # DDIM steps by a constant stride, not to the next grid point: with other spacings these differ.
        return torch.stack([t, t - scheduler.config.num_train_timesteps // num_inference_steps], 1)

    def encode_prompts(
        self,
        prompts: Sequence[str],
        negative: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 1,
        **inputs: Any,
    ) -> Condition:
        if inputs:
            raise ValueError(f"stable diffusion takes no {sorted(inputs)}")
        against = [negative or ""] * len(prompts) if isinstance(negative, str | None) else list(negative)
        self._encode_texts([*prompts, *against])
        texts = {
            "prompt_embeds": torch.stack([self._texts[prompt] for prompt in prompts]),
            "negative_prompt_embeds": torch.stack([self._texts[prompt] for prompt in against]),
        }
        shape = self.latent_shape(height or self.default_size[0], width or self.default_size[1], num_frames)
        return Condition(tuple(prompts), texts, shape)

    def to(self, device: torch.device | str) -> Model:
        self._texts.clear()
        return super().to(device)

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str], batch_size: int = 32) -> None:
        """Each distinct text once in the model's life."""
        new = sorted(set(texts) - self._texts.keys())
        tokenizer = self.pipeline.tokenizer
        limit = tokenizer.model_max_length
        long = [text for text in new if len(tokenizer.tokenize(text)) + 2 > limit]
        if long and not self._warned:
            self._warned = True
            warnings.warn(f"prompts beyond {limit} tokens are cut, the first: {long[0]!r}", stacklevel=3)
        with _quiet("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", TOKENIZER_LOG):
            for start in range(0, len(new), batch_size):
                part = new[start : start + batch_size]
                embeds, _ = self.pipeline.encode_prompt(part, self.device, 1, False)
                self._texts.update(zip(part, embeds, strict=True))

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        if height % factor or width % factor or num_frames != 1:
            raise ValueError(
                f"size: want height and width in multiples of {factor} and one frame, got {height}x{width}"
            )
        return (self.pipeline.unet.config.in_channels, height // factor, width // factor)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        if not isinstance(guidance, float | int) and guidance.keys() != {"text"}:
            raise ValueError(f"guidance: want a number or {{'text': number}}, got {dict(guidance)}")
        scale = guidance if isinstance(guidance, float | int) else guidance["text"]
        unet, text = self.trainable["unet"], condition.tensors["prompt_embeds"]
        x, text = x_t.to(self.dtype), text.to(self.dtype)
        t = t.to(x.device).expand(len(x))
        if scale <= 1:
            output: Tensor = unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
            return output
        text = torch.cat([condition.tensors["negative_prompt_embeds"].to(self.dtype), text])
        both = unet(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=text, return_dict=False)[0]
        without, with_text = both.chunk(2)
        guided: Tensor = without + scale * (with_text - without)
        return guided

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        vae = self.pipeline.vae
        media = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (media / 2 + 0.5).clamp(0, 1)

    def encode(self, media: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(media.to(vae.device, vae.dtype) * 2 - 1).latent_dist.mean
        return latents * vae.config.scaling_factor

    def export(self, folder: Path) -> None:
        from peft import get_peft_model_state_dict

        unet = unwrap(self.trainable["unet"])
        if POLICY not in getattr(unet, "peft_config", {}):
            unet.save_pretrained(folder / "unet")
            return
        # peft's own names throughout: diffusers' older ones cover attention alone, and it loads no mixture of the two.
        layers = get_peft_model_state_dict(unet, adapter_name=POLICY)
        self.pipeline.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=unet.peft_config[POLICY].to_dict()
        )

    def reload(self, folder: Path) -> None:
        if (folder / LORA_FILE).is_file():
            changed = self._reload_lora(folder)
        elif (folder / "unet").is_dir():
            weights = type(self.pipeline.unet).from_pretrained(folder / "unet").state_dict()
            own = self.pipeline.unet.state_dict()
            if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in own.items()}:
                raise ValueError(f"{folder}: its unet is of another shape than this model's")
            changed = any(not torch.equal(own[name], value.to(own[name])) for name, value in weights.items())
            self.pipeline.unet.load_state_dict(weights)
        else:
            raise ValueError(f"{folder}: no export (want {LORA_FILE} or a folder unet)")
        if not changed:
            raise ValueError(f"{folder}: loading it changes nothing (every update is zero, or no name matches)")

    def _reload_lora(self, folder: Path) -> bool:
        """Load a LoRA whole or not at all; whether it changes anything. diffusers would load what fits and only log.

        It is tried under another name first, so that a file that does not fit leaves the one in use alone.
        """
        from peft import get_peft_model_state_dict
        from safetensors import safe_open

        unet = self.pipeline.unet
        training = POLICY in getattr(unet, "peft_config", {})
        try:
            with safe_open(folder / LORA_FILE, "pt") as file:
                wanted = [name for name in file.keys() if not name.startswith(("text_encoder", "lora_te"))]  # noqa: SIM118
            with _quiet(*LORA_LOGS):
                self.pipeline.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name=TRIAL)
        except Exception as error:  # an untrusted file: torch, safetensors and diffusers each have errors of their own
            self._drop_trial(training)
            raise ValueError(f"{folder}: its LoRA does not fit this model: {' '.join(str(error).split())}") from error
        loaded: dict[str, Tensor] = {}
        if TRIAL in getattr(unet, "peft_config", {}):
            loaded = {k: v.clone() for k, v in get_peft_model_state_dict(unet, adapter_name=TRIAL).items()}
        self._drop_trial(training)
        if len(loaded) != sum(not name.endswith(".alpha") for name in wanted):
            raise ValueError(f"{folder}: only {len(loaded)} of its {len(wanted)} LoRA tensors fit this model")
        if training:
            unet.delete_adapters([POLICY])
        with _quiet(*LORA_LOGS):
            self.pipeline.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name=POLICY)
        if training:
            self._activate(unet, POLICY)
        return any(bool(value.any()) for name, value in loaded.items() if "lora_B" in name)

    def _drop_trial(self, training: bool) -> None:
        unet = self.pipeline.unet
        if training:  # first: deleting the active one warns
            self._activate(unet, POLICY)
        if TRIAL in getattr(unet, "peft_config", {}):
            unet.delete_adapters([TRIAL])


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
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
