"""How the scores of several heads become one: calibrated, gated, weighted, aggregated."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["sum", "mean", "median", "min", "mean_minus_std", "soft_min"]
RULES = ("sum", "mean", "median", "min", "mean_minus_std", "soft_min")


@dataclass(frozen=True)
class Scale:
    """A head's scores on a reference gallery: the mean of each prompt, their mean, and one
    deviation for all.

    A reward is known only up to an offset for each prompt, so prompts are centred one by one;
    ``std`` is of what is left, so that a prompt on which a head hardly varies is not blown up
    (Eisenstein et al. 2023, arXiv 2312.09244).
    """

    means: Mapping[str, float]
    mean: float
    std: float

    @classmethod
    def of(cls, scores: Sequence[float], prompts: Sequence[str]) -> "Scale":
        """From scores of a gallery.

        Raises:
            ValueError: within each prompt they are all the same, so that there is no scale.
        """
        groups: dict[str, list[float]] = {}
        for prompt, score in zip(prompts, scores, strict=True):
            groups.setdefault(prompt, []).append(score)
        means = {prompt: math.fsum(group) / len(group) for prompt, group in groups.items()}
        squares = [
            (score - means[prompt]) ** 2 for prompt, score in zip(prompts, scores, strict=True)
        ]
        std = math.sqrt(math.fsum(squares) / max(len(squares), 1))
        if not std > 0:
            raise ValueError(
                "its scores do not differ within any prompt; want several pictures a prompt"
            )
        return cls(means, math.fsum(means.values()) / len(means), std)

    def __call__(self, scores: Tensor, prompts: Sequence[str]) -> Tensor:
        """(score - mean of its prompt) / std; a prompt that the reference has not gets the mean of
        all. (B,).
        """
        means = scores.new_tensor([self.means.get(prompt, self.mean) for prompt in prompts])
        return (scores - means) / self.std


@dataclass(frozen=True)
class Combination:
    """A rule from heads' scores to one reward.

    Applied in this order: ``scales`` calibrate; ``normalise="group"`` standardises each head among
    the samples of one prompt, so that a head of small spread is not starved by one of large (each
    batch must then hold whole groups); ``weights``; ``rule``; ``gates``.

    Attributes:
        weights: of the heads; rules other than sum and mean take each head alike, so they want
            weights of 1.
        k: deviations that ``mean_minus_std`` takes off (population deviation over heads).
        temperature: of ``soft_min``, -T log mean exp(-r / T): differentiable, the minimum for small
            T.
        gates: head -> least score, as the head itself gives it. Where one is missed, the other
            heads do not count: their combination is ``floor`` there, and never less elsewhere, so
            that to pass is never worse.
    """

    weights: Mapping[str, float]
    rule: Rule = "sum"
    k: float = 1.0
    temperature: float = 1.0
    normalise: Literal["none", "group"] = "none"
    gates: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.0
    scales: Mapping[str, Scale] | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"combine.rule: want one of {RULES}, got {self.rule!r}")
        if not self.temperature > 0:
            raise ValueError(f"combine.temperature: want a number above 0, got {self.temperature}")
        if unknown := sorted(self.gates.keys() - self.weights.keys()):
            raise ValueError(
                f"combine.gates: no reward {unknown[0]!r}; have {sorted(self.weights)}"
            )
        if self.scales is not None and (
            missing := sorted(self.weights.keys() - self.scales.keys())
        ):
            raise ValueError(
                f"combine: the reference has no scores of {missing[0]!r}; it has {sorted(self.scales)}"
            )
        if self.rule not in ("sum", "mean") and any(
            weight != 1 for weight in self.weights.values()
        ):
            raise ValueError(
                f"combine.rule: {self.rule} takes each reward alike; want weights of 1"
            )
        if self.gates and not self.weights.keys() - self.gates.keys():
            raise ValueError("combine.gates: every reward is a gate; want one besides")

    def __call__(self, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
        """Heads' scores (B,) -> one reward (B,) float32; heads without a weight are left out."""
        ready = {name: self._ready(name, scores[name], prompts) for name in self.weights}
        open_ones = {name: score for name, score in ready.items() if name not in self.gates}
        combined = self._apply(open_ones)
        if not self.gates:
            return combined
        passed = torch.stack([scores[name] >= least for name, least in self.gates.items()]).all(0)
        counted = torch.where(
            passed, combined.clamp(min=self.floor), combined.new_tensor(self.floor)
        )
        return counted + torch.stack([self.weights[name] * ready[name] for name in self.gates]).sum(
            0
        )

    def provenance(self) -> dict[str, Any]:
        """What a combined score depends on besides the heads' own, as JSON holds it."""
        told = json.dumps(asdict(self), sort_keys=True)
        scales = None if self.scales is None else hashlib.sha256(told.encode()).hexdigest()
        return {**json.loads(told), "scales": scales}

    def _ready(self, name: str, score: Tensor, prompts: Sequence[str]) -> Tensor:
        score = score if self.scales is None else self.scales[name](score, prompts)
        return within_groups(score, prompts) if self.normalise == "group" else score

    def _apply(self, scores: Mapping[str, Tensor]) -> Tensor:
        weights = [self.weights[name] for name in scores]
        stacked = torch.stack(
            [weight * score for weight, score in zip(weights, scores.values(), strict=True)]
        )
        if self.rule == "mean":
            return stacked.sum(0) / math.fsum(map(abs, weights))
        return aggregate(stacked, self.rule, k=self.k, temperature=self.temperature)

    def spread(
        self, scores: Mapping[str, Tensor], spreads: Mapping[str, Tensor], prompts: Sequence[str]
    ) -> Tensor | None:
        """How unsure the reward is, (B,); None where nothing tells.

        Of a sum or mean, the heads' own spreads, taken as independent. Of another rule, whose heads
        are members of an ensemble, how these differ.
        """
        if self.rule not in ("sum", "mean"):
            ready = [self._ready(name, scores[name], prompts) for name in self.weights]
            return torch.stack(ready).std(0, correction=0) if len(ready) > 1 else None
        told = [name for name in self.weights if name in spreads]
        if not told:
            return None
        units = {
            name: self.weights[name] / (1.0 if self.scales is None else self.scales[name].std)
            for name in told
        }
        total = torch.stack([(unit * spreads[name]).square() for name, unit in units.items()]).sum(
            0
        )
        return total.sqrt() / (
            math.fsum(map(abs, self.weights.values())) if self.rule == "mean" else 1.0
        )


def aggregate(scores: Tensor, rule: Rule, *, k: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Scores of H heads, (H, B), to one reward, (B,) (Eisenstein et al. 2023, section 3)."""
    if rule == "sum":
        return scores.sum(0)
    if rule == "mean":
        return scores.mean(0)
    if rule == "median":
        return scores.quantile(0.5, dim=0)
    if rule == "min":
        return scores.amin(0)
    if rule == "mean_minus_std":
        return scores.mean(0) - k * scores.std(0, correction=0)
    return -temperature * ((-scores / temperature).logsumexp(0) - math.log(len(scores)))


def within_groups(scores: Tensor, prompts: Sequence[str]) -> Tensor:
    """Standardise among the samples of each prompt, (B,); a group without spread is 0.

    In float64: of scores near 1,000, float32 would keep no more than four digits of what is left of
    them here.
    """
    kinds = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([kinds[prompt] for prompt in prompts], device=scores.device)
    exact = scores.double()
    zeros = exact.new_zeros(len(kinds))
    count = zeros.index_add(0, group, torch.ones_like(exact))
    centred = exact - (zeros.index_add(0, group, exact) / count)[group]
    std = (zeros.index_add(0, group, centred.square()) / count).clamp(min=1e-24).sqrt()
    return (centred / std.clamp(min=1e-6)[group]).to(scores.dtype)
