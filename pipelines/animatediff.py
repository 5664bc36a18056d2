"""AnimateDiff: Stable Diffusion's UNet with motion modules between frames, and its per-image VAE."""

from collections.abc import Sequence

from torch import Tensor

from .stable_diffusion import StableDiffusion


class AnimateDiff(StableDiffusion):
    """Adapter of ``diffusers.AnimateDiffPipeline``; trains the UNet, motion modules included.

    Latents are (4, F, H/8, W/8). To train the motion alone, name it:
    ``target_modules: ".*motion_modules.*(to_q|to_k|to_v|to_out.0)"``.
    """

    default_frames = 16

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        channels, *sides = super().latent_shape(height, width)
        longest = self.pipeline.motion_adapter.config.motion_max_seq_length
        if not 1 <= num_frames <= longest:
            raise ValueError(f"num_frames: want 1 to {longest}, got {num_frames}")
        return (channels, num_frames, *sides)

    def denoise(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        texts = tensors["prompt_embeds"].repeat_interleave(x.shape[2], 0)  # the network takes one for every frame
        return super().denoise(x, t, {**tensors, "prompt_embeds": texts})

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        if frames is not None:
            latents = latents[:, :, list(frames)]
        pictures = super().decode(latents.transpose(1, 2).flatten(0, 1))
        return pictures.unflatten(0, (len(latents), -1))

    def encode(self, media: Tensor) -> Tensor:
        latents: Tensor = super().encode(media.flatten(0, 1)).unflatten(0, media.shape[:2])
        return latents.transpose(1, 2)
