"""Options of reward training, with their bounds and what each is."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from ..errors import UserError
from ..strict import Strict

Share = Annotated[float, Field(ge=0, le=1)]
LEARNING_RATES = {"lora": 1e-3, "frozen": 3e-3}


class RewardTraining(Strict):
    """What decides a reward head beside its pairs and its base."""

    mode: Literal["lora", "frozen"] = Field(
        "lora",
        description=(
            "lora: the score is the cosine of picture and prompt; low-rank changes of every weight "
            "matrix of both towers are learned and merged. frozen: features are computed once, and "
            "one small tower a dimension learns on them"
        ),
    )
    loss: Literal["bt", "btt"] = Field(
        "bt", description="bt learns from pairs with a better side, btt from ties too"
    )
    theta: float = Field(
        5.0, ge=1, description="how readily btt expects a tie, as of bradley_terry_ties"
    )
    label_smoothing: Share | Literal["votes"] = Field(
        0.0,
        description=(
            "the chance that a label is wrong, from 0 to 1; or votes: 1 minus the row's column "
            "'votes', the share of votes for its better side"
        ),
    )
    margin: str | None = Field(
        None,
        description=(
            "the column with the lead that the better side should have, in units of the difference "
            "of scores"
        ),
    )
    centre: float = Field(0.0, ge=0, description="weight of the loss that keeps scores around zero")
    rank: int = Field(8, ge=1, description="rank of the low-rank changes of mode lora")
    hidden: int = Field(
        0, ge=0, description="width of the hidden layer of a frozen head's towers; 0: none"
    )
    epochs: int = Field(4, ge=1, description="passes over the pairs")
    batch_size: int = Field(32, ge=1, description="pairs a step of the optimizer")
    lr: float | None = Field(
        None, ge=0, description=f"AdamW's learning rate; null: the mode's, {LEARNING_RATES}"
    )
    seed: int = Field(0, description="seed of the split, the order and the initial weights")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    held_out: float = Field(
        0.2,
        gt=0,
        lt=1,
        description=(
            "share of the prompts that are measured and never learned from; a frozen head's scores "
            "are normalised over them"
        ),
    )
    resize: Literal["squash", "shortest"] = Field(
        "squash", description="how pictures come to the model's size, as of the reward clip"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="dtype of the written weights of mode lora; measured as written"
    )
    dimensions: tuple[str, ...] = Field(
        ("overall",),
        description=(
            "names of what is scored, one for mode lora; of videos: visual_quality, "
            "motion_quality, text_alignment"
        ),
    )
    pretrained: str | None = Field(
        None,
        description="weights of a base that is an architecture: a tag of open_clip, or a file",
    )

    @model_validator(mode="after")
    def _options_agree(self) -> "RewardTraining":
        if self.loss == "btt" and (self.label_smoothing != 0 or self.margin is not None):
            raise ValueError(
                "label_smoothing, margin: go with loss bt; btt has ties for what is not sure"
            )
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions):
            names = ", ".join(self.dimensions) or "none"
            raise ValueError(f"dimensions: {names}; want one or more different names")
        if self.mode == "lora" and len(self.dimensions) > 1:
            count = len(self.dimensions)
            raise ValueError(f"mode lora: one dimension of pictures, got {count}; want mode frozen")
        return self

    @classmethod
    def parse(
        cls, options: "RewardTraining | Mapping[str, Any] | None", more: Mapping[str, Any]
    ) -> "RewardTraining":
        """Options from an instance or a mapping, with single ones replaced by ``more``.

        Raises:
            UserError: one line that names the option and what is accepted.
        """
        given = options.model_dump() if isinstance(options, cls) else dict(options or {})
        try:
            return cls.model_validate({**given, **more})
        except ValidationError as error:
            raise UserError(_complaint(error)) from None

    @property
    def learning_rate(self) -> float:
        """The learning rate: ``lr``, or the mode's where it is None."""
        return LEARNING_RATES[self.mode] if self.lr is None else self.lr

    def recorded(self) -> dict[str, Any]:
        """The options as measured.json has them, the learning rate resolved."""
        plain = self.model_dump(exclude={"dimensions", "pretrained"})
        return plain | {"lr": self.learning_rate}


def _complaint(error: ValidationError) -> str:
    """The first mistake in one line: the option, what was given, what is accepted."""
    first = error.errors()[0]
    # The cross-checks are at no option: their messages name the options themselves.
    if not first["loc"]:
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = sorted(RewardTraining.model_fields)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {known}"
        return f"no option {name!r} of reward training; {hint}"
    # Of a union, like label_smoothing's, the location has a second part: its words are pydantic's.
    field = RewardTraining.model_fields[name]
    if first["type"] == "literal_error" and len(first["loc"]) == 1:
        accepted = ", ".join(get_args(field.annotation))
        return f"{name}: {first['input']!r}, want one of {accepted}"
    return f"{name}: {first['input']!r}, {first['msg'].lower()} ({field.description})"
