"""How the scores of several heads become one: calibrated, gated, weighted, aggregated."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["sum", "mean", "median", "min", "mean_minus_std", "soft_min"]
RULES = ("sum", "mean", "median", "min", "mean_minus_std", "soft_min")


@dataclass(frozen=True)
class Scale:
    """A head's scores on a reference gallery: prompts' means, their mean, one deviation.

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
        rows = list(zip(prompts, scores, strict=True))
        groups: dict[str, list[float]] = {}
        for prompt, score in rows:
            groups.setdefault(prompt, []).append(score)
        means = {prompt: math.fsum(group) / len(group) for prompt, group in groups.items()}
        squares = [(score - means[prompt]) ** 2 for prompt, score in rows]
        std = math.sqrt(math.fsum(squares) / max(len(squares), 1))
        if not std > 0:
            raise ValueError(
                "its scores do not differ within any prompt; want several pictures a prompt"
            )
        return cls(means, math.fsum(means.values()) / len(means), std)

    def __call__(self, scores: Tensor, prompts: Sequence[str]) -> Tensor:
        """(score - mean of its prompt) / std, (B,).

        A prompt that the reference has not gets the mean of all prompts.
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
        weights = self.weights
        if unknown := sorted(self.gates.keys() - weights.keys()):
            raise ValueError(f"combine.gates: no reward {unknown[0]!r}; have {sorted(weights)}")
        scales = weights if self.scales is None else self.scales
        if missing := sorted(weights.keys() - scales.keys()):
            raise ValueError(
                f"combine: the reference has no scores of {missing[0]!r}; it has {sorted(scales)}"
            )
        if self.rule not in ("sum", "mean") and any(value != 1 for value in weights.values()):
            raise ValueError(
                f"combine.rule: {self.rule} takes each reward alike; want weights of 1"
            )
        if self.gates and not weights.keys() - self.gates.keys():
            raise ValueError("combine.gates: every reward is a gate; want one besides")

    def __call__(self, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
        """Heads' scores (B,) -> one reward (B,) float32; heads without a weight are left out."""
        ready = {name: self._ready(name, scores[name], prompts) for name in self.weights}
        ungated = {name: score for name, score in ready.items() if name not in self.gates}
        combined = self._apply(ungated)
        if not self.gates:
            return combined

        passed = torch.stack([scores[name] >= least for name, least in self.gates.items()]).all(0)
        floor = combined.new_tensor(self.floor)
        # Clamped from below: a sample that passes never gets less than one that fails.
        counted = torch.where(passed, combined.clamp(min=self.floor), floor)
        gates = torch.stack([self.weights[name] * ready[name] for name in self.gates])
        return counted + gates.sum(0)

    def provenance(self) -> dict[str, Any]:
        """What a combined score depends on besides the heads' scores, as JSON holds it."""
        text = json.dumps(asdict(self), sort_keys=True)
        # scales are as long as the reference's prompts: their hash says as much
        scales = None if self.scales is None else hashlib.sha256(text.encode()).hexdigest()
        return {**json.loads(text), "scales": scales}

    def spread(
        self, scores: Mapping[str, Tensor], spreads: Mapping[str, Tensor], prompts: Sequence[str]
    ) -> Tensor | None:
        """Standard deviation of the reward, (B,); None where no head gives one.

        Of a sum or mean: from the deviations that heads give, taken as independent. Of another
        rule, whose heads are members of an ensemble: the deviation between heads.
        """
        if self.rule not in ("sum", "mean"):
            ready = [self._ready(name, scores[name], prompts) for name in self.weights]
            return torch.stack(ready).std(0, correction=0) if len(ready) > 1 else None

        names = [name for name in self.weights if name in spreads]
        if not names:
            return None
        squares = []
        for name in names:
            scale = 1.0 if self.scales is None else self.scales[name].std
            squares.append((self.weights[name] / scale * spreads[name]).square())
        total = torch.stack(squares).sum(0).sqrt()
        return total / (self._total_weight(self.weights.values()) if self.rule == "mean" else 1.0)

    def _ready(self, name: str, score: Tensor, prompts: Sequence[str]) -> Tensor:
        """A head's scores, calibrated and normalised."""
        score = score if self.scales is None else self.scales[name](score, prompts)
        return within_groups(score, prompts) if self.normalise == "group" else score

    def _apply(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The rule on the weighted scores, (B,)."""
        weights = [self.weights[name] for name in scores]
        weighted = [weight * each for weight, each in zip(weights, scores.values(), strict=True)]
        stacked = torch.stack(weighted)
        if self.rule == "mean":
            return stacked.sum(0) / self._total_weight(weights)
        return aggregate(stacked, self.rule, k=self.k, temperature=self.temperature)

    @staticmethod
    def _total_weight(weights: Iterable[float]) -> float:
        return math.fsum(map(abs, weights))


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

    In float64: of centred scores near 1,000, float32 would keep four digits at most.
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([numbers[prompt] for prompt in prompts], device=scores.device)
    exact = scores.double()
    zeros = exact.new_zeros(len(numbers))
    count = zeros.index_add(0, group, torch.ones_like(exact))

    mean = zeros.index_add(0, group, exact) / count
    centred = exact - mean[group]
    variance = zeros.index_add(0, group, centred.square()) / count
    # The root of 0 has no gradient.
    std = variance.clamp(min=1e-24).sqrt()
    return (centred / std.clamp(min=1e-6)[group]).to(scores.dtype)
