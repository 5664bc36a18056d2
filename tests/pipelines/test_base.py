"""The Condition: rows of texts and tensors that belong together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator

from align_gen.pipelines import Condition

Maker = Callable[..., Any]
X = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(0))
T = torch.tensor(301.0)


# -- conditions


def condition(rows: int, start: int = 0) -> Condition:
    numbers = torch.arange(start, start + rows)
    return Condition(
        tuple(str(i) for i in numbers.tolist()),
        {"embeds": numbers[:, None, None] * torch.ones(1, 3, 2), "size": numbers},
        (4, 8, 8),
    )


def same(a: Condition, b: Condition) -> bool:
    return (
        a.prompts == b.prompts
        and a.latent_shape == b.latent_shape
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    )


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(3, 9), [3]),
        ([2], [2]),
        ([3, 0, 0], [3, 0, 0]),
        ([-1], [3]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        ([], []),
    ],
)
def test_indexing_takes_the_same_rows_of_everything(rows: Any, kept: list[int]) -> None:
    found = condition(4)[rows]
    assert found.prompts == tuple(str(i) for i in kept)
    assert found.tensors["size"].tolist() == kept
    assert found.tensors["embeds"].shape == (len(kept), 3, 2)
    assert found.latent_shape == (4, 8, 8)


def test_one_row_keeps_its_axis() -> None:
    one = condition(1)
    assert len(one) == 1
    assert same(one[:1], one)
    assert same(one[[0]], one)
    assert one.tensors["size"].shape == (1,)


def test_siblings_stand_together() -> None:
    assert condition(2).repeat(3).prompts == ("0", "0", "0", "1", "1", "1")
    assert same(condition(3).repeat(1), condition(3))
    assert same(condition(2).repeat(3)[::3], condition(2))
    assert same(condition(1).repeat(4), condition(1)[[0, 0, 0, 0]])


def test_cat_undoes_slicing() -> None:
    whole = condition(5)
    assert same(Condition.cat([whole[:2], whole[2:3], whole[3:]]), whole)
    assert same(Condition.cat([whole]), whole)
    assert same(Condition.cat([condition(2), condition(3, start=2)]), whole)


def test_sizes_do_not_mix() -> None:
    other = Condition(("x",), {}, (4, 8, 16))
    with pytest.raises(ValueError, match="several sizes"):
        Condition.cat([condition(1), other])


def test_every_tensor_has_a_row_a_prompt() -> None:
    with pytest.raises(ValueError, match=r"condition embeds: want 2 rows, got \(3, 1\)"):
        Condition(("a", "b"), {"embeds": torch.zeros(3, 1)}, (4, 8, 8))
