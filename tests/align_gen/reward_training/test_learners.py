"""Low-rank changes of a CLIP: nothing at first, and merged exactly."""

import open_clip
import pytest
import torch
from torch import Tensor

from align_gen.reward_training.learners import add_lora, merge_lora
from tests.kits.preferences import pictures


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_low_rank_changes_are_nothing_at_first_and_merge_exactly(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Bit by bit the base at the start; every change reaches the output; merged, the same numbers
    and names.
    """
    folder = request.getfixturevalue(kind)
    model = open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)
    names = list(model.state_dict())
    embeddings = [model.positional_embedding.clone(), model.token_embedding.weight.clone()]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a dog", "a cat"])

    def outputs() -> Tensor:
        return torch.cat([model.encode_image(pictures(2, 0)), model.encode_text(tokens)])

    with torch.no_grad():  # attention takes another way where gradients are wanted
        before = outputs()
        changes = add_lora(model, rank=3, seed=0)
        assert torch.equal(outputs(), before)
    outputs().square().sum().backward()
    assert len(changes) > 8
    assert all(change.up.grad is not None and change.up.grad.any() for change in changes)
    for change in changes:
        change.up.data.normal_(std=0.1)
    moved = outputs().detach()
    assert (moved - before).abs().max() > 1e-3
    merge_lora(model)
    assert sorted(model.state_dict()) == sorted(names)
    torch.testing.assert_close(outputs(), moved)
    assert torch.equal(model.positional_embedding, embeddings[0])
    assert torch.equal(model.token_embedding.weight, embeddings[1])
    assert not any(p.requires_grad for p in model.parameters())
