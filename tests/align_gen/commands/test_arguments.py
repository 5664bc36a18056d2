"""Rewards as text on the command line."""

from typing import Any

import pytest

from align_gen.commands.arguments import parse_reward


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jpeg_size", ("jpeg_size", {"name": "jpeg_size"})),
        ("mean_hue:hue=120", ("mean_hue", {"name": "mean_hue", "hue": 120})),
        ("mean_hue:hue=1e1", ("mean_hue", {"name": "mean_hue", "hue": 10.0})),
        ("red=mean_hue:hue=0,weight=2.5", ("red", {"name": "mean_hue", "hue": 0, "weight": 2.5})),
        ("clip:path=emoji-clip,goal=[a b, c d],alpha=0.5",
         ("clip", {"name": "clip", "path": "emoji-clip", "goal": ["a b", "c d"], "alpha": 0.5})),
        ("clip:path=/some/dir,goal=a glossy 3d emoji",
         ("clip", {"name": "clip", "path": "/some/dir", "goal": "a glossy 3d emoji"})),
        ("clip:path=hf-hub:owner/model", ("clip", {"name": "clip", "path": "hf-hub:owner/model"})),
        ("mine.py:warm", ("mine.py:warm", {"name": "mine.py:warm"})),
        ("w=mine.py:warm:by=2", ("w", {"name": "mine.py:warm", "by": 2})),
        ("a.b.c:Head:path=x", ("a.b.c:Head", {"name": "a.b.c:Head", "path": "x"})),
    ],
)  # fmt: skip
def test_rewards_on_the_command_line(text: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse_reward(text) == expected
