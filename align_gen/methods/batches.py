"""What methods learn from, and how their samples are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from ..pipelines import Condition, Model
from ..strict import Strict


@dataclass(frozen=True)
class Prompts:
    """One step's prompts, one size bucket.

    ``ids`` are their places in the run's whole stream of prompts: they seed the noise, whatever
    process draws it.
    """

    texts: Sequence[str]
    condition: Condition
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Pairs(Prompts):
    """Preference pairs of a step, one prompt each.

    Pictures (B, 3, H, W) or videos (B, F, 3, H, W), in [0, 1].
    """

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Media(Prompts):
    """Given pictures (B, 3, H, W) or videos (B, F, 3, H, W) of a step, in [0, 1].

    Those of one prompt are adjacent.
    """

    media: Tensor


Batch = Prompts | Pairs | Media
Kind = Literal["prompts", "pairs", "media"]


class Sampling(Strict):
    """How trajectories are drawn while training."""

    num_inference_steps: int = Field(50, ge=1, description="Denoising steps of a trajectory.")
    guidance_scale: float = Field(
        5.0, ge=0, description="Classifier-free guidance; 1 is none. The guided model is trained."
    )
    eta: float = Field(
        1.0, ge=0, le=1, description="Noise of a step: 0 is the ODE (DDIM), 1 the DDPM posterior."
    )
    flow_sde: float | None = Field(
        None, gt=0, description="Of flow models: noise by Flow-GRPO's SDE of this level, times eta."
    )
    height: int | None = Field(
        None, ge=8, description="Of pictures, in pixels. null: the model's own."
    )
    width: int | None = Field(
        None, ge=8, description="Of pictures, in pixels. null: the model's own."
    )
    num_frames: int | None = Field(
        None, ge=1, description="Of videos. null: the model's own number."
    )


def encode(model: Model, texts: Sequence[str], sampling: Sampling) -> Condition:
    """The texts' condition at the run's size."""
    return model.encode_prompts(
        texts, height=sampling.height, width=sampling.width, num_frames=sampling.num_frames
    )
