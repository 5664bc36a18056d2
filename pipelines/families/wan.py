"""Wan 2.1 and 2.2, text to video: UMT5, a causal video VAE, one or two transformers.

Of two, each has its range of noise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exports import LORA_SAFE
from ..pretrained import Video
from ..process import Flow
from ..schedules import flow_times, network_time
from ..trainable import unwrap


class Wan(Video):
    """Adapter of ``diffusers.WanPipeline``; trains the transformer, or both.

    Latents are (16, F, H/8, W/8).
    """

    default_size = (480, 832)
    default_frames = 81
    frame_rate = 16
    max_sequence_length = 512

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        parts = {name: getattr(pipeline, name, None) for name in ("transformer", "transformer_2")}
        self.trainable = {name: part for name, part in parts.items() if part is not None}
        self.process = Flow()
        self.stride = (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial)
        self.patch_size = self.network.patch_size[1]
        if pipeline.config.expand_timesteps:
            self.default_size = (704, 1280)
            self.default_frames = 121

    @property
    def network(self) -> Any:
        """The configuration that its transformers share."""
        return unwrap(next(iter(self.trainable.values()))).config

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        return flow_times(self.pipeline.scheduler, num_inference_steps, 0)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _ = self.pipeline.encode_prompt(
            list(texts),
            None,
            False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        dtype = self.pipeline.vae.dtype
        mean = torch.tensor(config.latents_mean, device=self.device, dtype=dtype)
        std = torch.tensor(config.latents_std, device=self.device, dtype=dtype)
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)

    def lora_folder(self, component: str) -> str:
        return {"transformer_2": "transformer_2"}.get(component, ".")

    def lora_name(self, component: str) -> str:
        """One name for both networks, as each has a file of its own.

        ``load_into_transformer_2`` says which network a file is for.
        """
        return "transformer"

    def load_lora(self, component: str, folder: Path, adapter: str) -> None:
        second = component == "transformer_2"
        self.pipeline.load_lora_weights(
            folder, adapter_name=adapter, load_into_transformer_2=second, **LORA_SAFE
        )

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Run rows above the boundary of noise in the first transformer, others in the second."""
        boundary = self.pipeline.config.boundary_ratio
        if boundary is None:
            return self._call("transformer", x, t, tensors)
        scheduler = self.pipeline.scheduler
        noisy = network_time(scheduler, t) >= boundary * scheduler.config.num_train_timesteps
        output = torch.empty_like(x)
        for name, rows in (("transformer", noisy), ("transformer_2", ~noisy)):
            if rows.all():
                return self._call(name, x, t, tensors)
            if rows.any():
                part = {key: value[rows] for key, value in tensors.items()}
                output = output.index_put((rows,), self._call(name, x[rows], t[rows], part))
        return output

    def _call(self, name: str, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """One call of a network."""
        # 2.2 TI2V takes a time for every token
        if self.pipeline.config.expand_timesteps and t.ndim == 1:
            tokens = x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
            t = t[:, None].expand(-1, tokens)
        output: Tensor = self.trainable[name](
            hidden_states=x,
            timestep=network_time(self.pipeline.scheduler, t),
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_hidden_states_image=tensors.get("image_embeds"),
            return_dict=False,
        )[0]
        return output
