"""Opinions of one picture, or of several heads: their mean, and how they differ."""

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads import load, reward_set
from align_gen.reward_heads.wrappers.views import Views, crops


def pictures(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def left(media: Tensor, prompts: object) -> Tensor:
    """Brightness of the left half: mirrored, that of the right."""
    return media[..., : media.shape[-1] // 2].mean((1, 2, 3))


def bright(media: Tensor, prompts: object) -> Tensor:
    return media.mean((1, 2, 3))


def test_views_of_what_they_do_not_change_agree() -> None:
    """The mean colour of one flat picture is the same in every crop and mirrored."""
    flat = torch.tensor([0.8, 0.3, 0.1]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    head = load("views", head="mean_hue", hue=20.0)
    assert isinstance(head, Views)
    score, spread = head.score_and_std(flat, ["", ""])
    torch.testing.assert_close(score, load("mean_hue", hue=20.0)(flat, ["", ""]))
    assert spread.abs().max() < 1e-6


def test_a_mirror_image_that_scores_otherwise_is_uncertainty() -> None:
    """Opinions l and r: mean (l + r)/2, deviation |l - r|/2; a penalty takes its multiple off."""
    media = pictures()
    l, r = left(media, ()), left(media.flip(-1), ())  # noqa: E741
    head = Views(load(left), count=2, penalty=2.0)
    score, spread = head.score_and_std(media, [""] * 3)
    torch.testing.assert_close(spread, (l - r).abs() / 2)
    torch.testing.assert_close(score, (l + r) / 2 - 2 * spread)
    torch.testing.assert_close(head(media, [""] * 3), score)


def test_noise_of_level_zero_is_the_picture_and_the_noise_is_one() -> None:
    """Two levels: the clean score and the noisy one. The same picture in another batch gets the
    same noise.
    """
    media = pictures()
    head = Views(load(bright), kind="noise", strength=0.2)
    found = head.opinions(media, [""] * 3)
    torch.testing.assert_close(found[0], bright(media, ()))
    assert (found[1] != found[0]).all()
    torch.testing.assert_close(head.opinions(media[1:2], [""])[:, 0], found[:, 1])


def test_crops_are_the_corners_at_the_same_size() -> None:
    """Of a picture that rises to the right, left corners are darker than it is, right ones
    brighter.
    """
    rising = torch.linspace(0, 1, 20).expand(1, 3, 20, 20)
    views = crops(rising, 6, 0.3)
    assert [view.shape for view in views] == [rising.shape] * 6
    means = [view.mean().item() for view in views]
    assert means[2] == pytest.approx(means[4], abs=1e-5) and means[3] == pytest.approx(
        means[5], abs=1e-5
    )
    assert means[2] < means[0] - 0.1 and means[3] > means[0] + 0.1
    torch.testing.assert_close(views[1], rising.flip(-1))


def test_gradients_flow_where_the_head_has_them() -> None:
    head = load("views", head="mean_hue")
    assert head.differentiable and not load("views", head="jpeg_size").differentiable
    media = pictures().requires_grad_()
    head(media, [""] * 3).sum().backward()
    assert media.grad is not None and media.grad.abs().sum() > 0


def test_a_set_tells_how_unsure_it_is() -> None:
    """Weight 2: twice the head's spread; of a video, the mean over frames."""
    rewards = reward_set(
        {"safe": {"name": "views", "head": "jpeg_size", "count": 3, "weight": 2.0}}
    )
    media = pictures()
    _, spread = rewards.heads["safe"].score_and_std(media, [""] * 3)
    found = rewards(media, [""] * 3)
    assert found.uncertainty is not None
    torch.testing.assert_close(found.uncertainty, 2 * spread)
    video = media[:2].unsqueeze(1).repeat(1, 3, 1, 1, 1)
    told = rewards(video, ["", ""]).uncertainty
    assert told is not None
    torch.testing.assert_close(told, 2 * spread[:2])


def test_provenance_tells_the_views_and_the_head() -> None:
    told = load("views", head="jpeg_size", quality=50, count=2).provenance()["options"]
    assert (told["count"], told["head"]) == (2, {"sign": -1.0, "quality": 50})
    told = load("ensemble", members=["jpeg_size", {"name": "mean_hue", "hue": 90}]).provenance()
    assert told["options"]["members"][1] == {"hue": 90.0} and told["weights_sha256"] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mean_hue", "kind": "blur"}, "kind: want crops or noise"),
        ({"head": "mean_hue", "count": 1}, "count: want 2 to 6 of crops"),
        ({"head": "mean_hue", "strength": 1.0}, "strength: want a number between 0 and 1"),
        ({"head": "mean_hue", "colour": 3}, "options are"),
        ({"head": "no_such"}, "no reward 'no_such'"),
    ],
)
def test_a_wrong_view_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("views", **options)
