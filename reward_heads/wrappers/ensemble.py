"""Several heads as one, and how far they disagree."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import RewardHead
from .uncertain import UncertainHead


class Ensemble(UncertainHead):
    """Averages several rewards, less a penalty where they disagree.

    The disagreement is the uncertainty of the score.

    Args:
        members: two or more heads, each a name, a head, or a mapping with a ``name`` and options.
        scale: divisors of the members' scores, one a member, above 0, so that all count alike;
            None: 1.
        penalty: standard deviations of the members' scores that are taken off their mean.
    """

    def __init__(
        self,
        members: Sequence[str | RewardHead | Mapping[str, Any]],
        scale: Sequence[float] | None = None,
        penalty: float = 0.0,
    ):
        from ..loading import load

        if isinstance(members, str) or len(members) < 2:
            raise ValueError(f"ensemble members: want two or more heads, got {members!r}")
        self.scale = [1.0] * len(members) if scale is None else list(scale)
        if len(self.scale) != len(members) or not all(each > 0 for each in self.scale):
            raise ValueError(f"ensemble scale: want {len(members)} numbers above 0, got {scale}")
        self.penalty = penalty

        specs = [dict(each) if isinstance(each, Mapping) else {"name": each} for each in members]
        self.members = [load(spec.pop("name", ""), **spec) for spec in specs]
        kinds = {member.media for member in self.members}
        if len(kinds) > 1:
            raise ValueError("ensemble members: some score pictures and some videos; want one kind")
        self.media = kinds.pop()
        # What one member needs, all are given.
        context = [key for member in self.members for key in member.required_context]
        self.required_context = tuple(dict.fromkeys(context))
        self.differentiable = all(member.differentiable for member in self.members)
        self.reads_prompt = any(member.reads_prompt for member in self.members)
        self.parallel = all(member.parallel for member in self.members)

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        rows = []
        for member, scale in zip(self.members, self.scale, strict=True):
            # A member is given what it asked for alone: others' keys may be unknown to it.
            given = {key: context[key] for key in member.required_context}
            scores = member(media, prompts, **given)
            rows.append(scores.to(media.device, torch.float32) / scale)
        return torch.stack(rows)

    def provenance(self) -> dict[str, Any]:
        parts = [member.provenance() for member in self.members]
        options = {
            "scale": self.scale,
            "penalty": self.penalty,
            "members": [part["options"] for part in parts],
        }
        keys = ("weights_sha256", "preprocessing", "dtype")
        joined = {key: [part[key] for part in parts] for key in keys}
        # Of members that are code; the others have none.
        code = [part.get("code_sha256") for part in parts]
        joined |= {"code_sha256": code} if any(code) else {}
        return {**joined, "options": options}

    def to(self, device: torch.device | str) -> "Ensemble":
        for member in self.members:
            member.to(device)
        return self
