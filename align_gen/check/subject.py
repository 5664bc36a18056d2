"""The model that is checked, and how to ask it for something small."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from .. import bundled
from ..galleries.gallery import Gallery
from ..pipelines import Condition, Model, Rollout, rollout, sample
from ..pipelines.pretrained import Pretrained
from ..reward_heads import RewardSet

PROMPTS = ("a red apple", "two dogs on a green field")
OTHERS = ("a blue boat", "nothing but clouds")
STEPS = 4
SCALE = 3.0
ETA = 1.0
# Of pictures in [0, 1] drawn with guidance, by the weights' dtype: 1e-5 of rounding, times what
# guidance makes of it. Two predictions take part, u + SCALE (c - u) = SCALE c - (SCALE - 1) u, so
# that their roundings add up to SCALE + (SCALE - 1) of one.
TOLERANCE = {torch.float32: (2 * SCALE - 1) * 1e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass
class Subject:
    """A model, and the size and inputs of what it is asked for.

    ``size``: height, width and frames. ``inputs``: what the family's ``encode_prompts`` reads
    beside texts, one row for each of ``PROMPTS``.
    """

    model: Pretrained
    size: Mapping[str, int]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    rewards: RewardSet | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        rewards: RewardSet | None = None,
    ) -> "Subject":
        """A subject of the family's own size unless given, with random pictures as inputs.

        Raises:
            ValueError: the model has no pipeline behind it, or the size is none of the family's.
        """
        if not isinstance(model, Pretrained):
            raise ValueError(
                f"{type(model).__name__}: only adapters of diffusers pipelines can be checked"
            )
        if any(getattr(part, "peft_config", None) for part in model.trainable.values()):
            raise ValueError(
                f"{type(model).__name__}: a LoRA is loaded; check the model without it"
            )
        size = {
            "height": height or model.default_size[0],
            "width": width or model.default_size[1],
            "num_frames": num_frames or model.default_frames,
        }
        model.latent_shape(*size.values())
        shape = (len(PROMPTS), 3, size["height"], size["width"])
        # Multiples of 1/255, as files hold them: the pipeline may go through bytes.
        inputs = {
            name: torch.randint(256, shape, generator=Generator().manual_seed(2)) / 255
            for name in model.required_inputs
        }
        return cls(model, size, inputs, rewards)

    @property
    def tolerance(self) -> float:
        """Largest difference of two pictures in [0, 1] that rounding explains."""
        return TOLERANCE[self.model.dtype]

    def guidance(self, text: float = SCALE) -> dict[str, float]:
        """Guidance scales: the family's own, and that of texts."""
        return {**self.model.guidances, "text": text}

    def condition(self, prompts: Sequence[str] = PROMPTS, rows: slice = slice(None)) -> Condition:
        """Prompts and inputs, encoded; ``rows`` picks some of them."""
        options: dict[str, Any] = {**self.size}
        options |= {name: value[rows] for name, value in self.inputs.items()}
        return self.model.encode_prompts(prompts[rows], **options)

    def latents(self) -> Tensor:
        """The noise that pictures start from, the same at every call."""
        shape = self.model.latent_shape(*self.size.values())
        return torch.randn(len(PROMPTS), *shape, generator=Generator().manual_seed(0))

    def pictures(self, prompts: Sequence[str] = PROMPTS, text_guidance: float = SCALE) -> Tensor:
        """Pictures sampled from ``latents()`` with eta = 0."""
        return sample(
            self.model,
            self.condition(prompts),
            latents=self.latents(),
            num_inference_steps=STEPS,
            guidance_scale=self.guidance(text_guidance),
        )

    def by_diffusers(self, text_guidance: float = SCALE) -> Tensor:
        """Pictures as of ``pictures()``, drawn by the diffusers pipeline itself."""
        model = self.model
        pipeline = model.pipeline
        scheduler = pipeline.scheduler
        # Kept to be put back: the pipeline is the user's own object.
        bar = getattr(pipeline, "_progress_bar_config", {})
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = model.exact_scheduler()

        # A family whose pipeline takes one picture at a time gets as many calls as prompts.
        frames = {} if model.default_frames == 1 else {"num_frames": self.size["num_frames"]}
        size = {name: self.size[name] for name in ("height", "width")} | frames
        latents = self.latents().to(model.device, model.dtype)
        pictures = []
        try:
            for start in range(len(PROMPTS)) if model.one_by_one else [0]:
                rows = slice(start, start + 1 if model.one_by_one else None)
                inputs = {name: value[rows] for name, value in self.inputs.items()}
                call = model.call(latents[rows], self.guidance(text_guidance), **size, **inputs)
                output = pipeline(
                    prompt=list(PROMPTS[rows]), num_inference_steps=STEPS, output_type="pt", **call
                )
                pictures.append(output.images if hasattr(output, "images") else output.frames)
        finally:
            pipeline.scheduler = scheduler
            pipeline.set_progress_bar_config(**bar)
        return torch.cat(pictures).float().cpu()

    def real_pictures(self) -> Tensor:
        """Four bundled pictures (4, 3, H, W) at the size, or still videos (4, F, 3, H, W)."""
        gallery = Gallery.load(bundled.PICTURES)
        pictures = torch.stack([gallery.image(i) for i in range(4)])
        pictures = interpolate(
            pictures, (self.size["height"], self.size["width"]), mode="bicubic", antialias=True
        )
        # A video that stands still, for families that know nothing else.
        if self.model.default_frames > 1:
            pictures = pictures[:, None].expand(-1, self.size["num_frames"], -1, -1, -1)
        return pictures.clamp(0, 1)

    def precisions(self) -> Iterator[tuple[str, AbstractContextManager[Any], float]]:
        """Precisions that a step can run in: name, context, and the replay noise normal there."""
        # float32 weights are trained as they are, or under autocast; half ones only in their dtype.
        if self.model.dtype == torch.float32:
            yield "fp32", nullcontext(), 1e-4
        half = torch.float16 if self.model.dtype == torch.float16 else torch.bfloat16
        autocast = torch.autocast(self.model.device.type, half)
        yield str(half).removeprefix("torch."), autocast, 0.2

    def rollout(self, condition: Condition) -> Rollout:
        """Stochastic trajectories, one for each prompt, from a generator each."""
        generators = [Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        return rollout(
            self.model,
            condition,
            generator=generators,
            num_inference_steps=STEPS,
            eta=ETA,
            guidance_scale=self.guidance(),
        )
