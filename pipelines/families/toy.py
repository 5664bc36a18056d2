"""A Gaussian mixture with exact denoiser, velocity and likelihood, to test methods on.

x0 ~ sum_k w_k N(m_k, s_k^2 I). Given x_t = alpha x0 + sigma x1, component k explains x_t ~ N(alpha
m_k, v_k I) with v_k = alpha^2 s_k^2 + sigma^2, and E[x0 | x_t, k] = m_k + (alpha s_k^2 / v_k)(x_t -
alpha m_k). The trainable part is a shift of the predicted x0 for each time, enough to reach any
optimum that is linear in x.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Condition, Guidance, Model
from ..lora_targets import LoraOptions
from ..process import Diffusion, Flow, Process, gaussian_log_prob
from ..trainable import unwrap

BINS = 1000


class MixtureDenoiser(nn.Module):
    """Exact prediction of x0 for K isotropic Gaussians in D dimensions, plus a learned shift.

    The shift is a number for each time and dimension.

    Args:
        means: (K, D). stds, weights: (K,).
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)
        self.register_buffer("weights", weights / weights.sum())
        self.shift = nn.Parameter(torch.zeros(BINS + 1, means.shape[1], dtype=means.dtype))

    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, bin_: Tensor) -> Tensor:
        """x_t (B, D); alpha, sigma, bin_ (B,) -> predicted x0 (B, D)."""
        alpha = alpha[:, None, None]
        sigma = sigma[:, None, None]
        stds = self.stds[:, None]  # (K, 1)
        centred = x_t[:, None] - alpha * self.means  # (B, K, D)
        variance = alpha**2 * stds**2 + sigma**2
        log_density = -0.5 * (centred**2 / variance + variance.log()).sum(-1)
        share = (log_density + self.weights.log()).softmax(-1)[..., None]  # (B, K, 1)
        posterior = self.means + alpha * stds**2 / variance * centred
        return (share * posterior).sum(1) + self.shift[bin_]


class Toy(Model):
    """The mixture as a Model; latents are (B, D, 1, 1).

    There are no pixels: media *are* the latents.
    """

    default_size = (1, 1)

    def __init__(self, denoiser: MixtureDenoiser, process: Process):
        super().__init__(pipeline=None)
        self.trainable = {"denoiser": denoiser}
        self.process = process

    def components(self) -> dict[str, nn.Module]:
        return dict(self.trainable)

    def times(self, num_inference_steps: int, latent_shape: Sequence[int]) -> Tensor:
        if isinstance(self.process, Flow):
            grid = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
            return torch.stack([grid[:-1], grid[1:]], 1)
        alphas = self.process.alphas_cumprod  # type: ignore[attr-defined]
        stride = len(alphas) // num_inference_steps
        t = torch.arange(num_inference_steps - 1, -1, -1, dtype=torch.float64) * stride + stride - 1
        return torch.stack([t, t - stride], 1)

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
        if inputs:
            raise ValueError(f"toy takes no {sorted(inputs)}")
        return Condition(tuple(prompts), {}, self.latent_shape(1, 1))

    def latent_shape(self, height: int, width: int, num_frames: int = 1) -> tuple[int, ...]:
        return (self.denoiser.means.shape[1], 1, 1)

    @property
    def denoiser(self) -> MixtureDenoiser:
        denoiser = unwrap(self.trainable["denoiser"])
        assert isinstance(denoiser, MixtureDenoiser)
        return denoiser

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        """The exact output, without guidance, which has nothing to compare here."""
        batch = len(x_t)
        alpha, sigma = (c.to(x_t).expand(batch) for c in self.process.coefficients(t))
        number = t * BINS if isinstance(self.process, Flow) else t
        bin_ = number.round().long().expand(batch)
        x0 = self.trainable["denoiser"](x_t.flatten(1), alpha, sigma, bin_).view_as(x_t)
        x1 = (x_t - alpha.view(-1, 1, 1, 1) * x0) / sigma.view(-1, 1, 1, 1)
        return self.process.target(x0, x1, t)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        return latents

    def encode(self, media: Tensor) -> Tensor:
        return media

    def log_likelihood(self, x0: Tensor) -> Tensor:
        """Exact log density of the untrained mixture at x0 (B, D, 1, 1) -> (B,)."""
        net = self.denoiser
        parts = []
        for mean, std, weight in zip(net.means, net.stds, net.weights, strict=True):
            density = gaussian_log_prob(x0.flatten(1), mean, std, "sum")
            parts.append(density + weight.log())
        return torch.stack(parts).logsumexp(0)

    def train_lora(self, options: LoraOptions) -> None:
        raise ValueError("toy: has no LoRA; train it in full (model.lora: null)")

    def export(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.denoiser.state_dict(), folder / "denoiser.safetensors")

    def reload(self, folder: Path) -> None:
        from safetensors.torch import load_file

        file = folder / "denoiser.safetensors"
        if not file.is_file():
            raise ValueError(f"{folder}: no export (want {file.name})")
        weights = load_file(file)
        shapes = {name: value.shape for name, value in self.denoiser.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise ValueError(f"{folder}: its mixture is of another shape than this model's")
        before = self.denoiser.shift.detach().clone()
        self.denoiser.load_state_dict(weights)
        if torch.equal(before, self.denoiser.shift):
            raise ValueError(f"{folder}: loading it changes nothing")


def _mixture(
    means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float] | None
) -> MixtureDenoiser:
    ones = [1.0] * len(stds)
    return MixtureDenoiser(torch.tensor(means), torch.tensor(stds), torch.tensor(weights or ones))


def toy_diffusion(
    means: Sequence[Sequence[float]] = ((0.0,),),
    stds: Sequence[float] = (1.0,),
    weights: Sequence[float] | None = None,
) -> Toy:
    """The mixture under Stable Diffusion's noise schedule; its last step lands on clean data."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return Toy(_mixture(means, stds, weights), Diffusion((1 - betas).cumprod(0), 1.0))


def toy_flow(
    means: Sequence[Sequence[float]] = ((0.0,),),
    stds: Sequence[float] = (1.0,),
    weights: Sequence[float] | None = None,
) -> Toy:
    """The mixture as a rectified flow on a uniform grid."""
    return Toy(_mixture(means, stds, weights), Flow())
