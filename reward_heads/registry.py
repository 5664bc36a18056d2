"""The heads that have a name, and their classes, resolved lazily."""

from importlib import import_module
from typing import Any

# Name -> module of this package:class
HEADS = {
    "aesthetic": "heads.aesthetic:Aesthetic",
    "clip": "heads.clip:ClipHead",
    "colour": "heads.colour:Colourfulness",
    "ensemble": "wrappers.ensemble:Ensemble",
    "hps": "heads.hps:HpsHead",
    "image_reward": "heads.image_reward:ImageReward",
    "jpeg_size": "heads.jpeg_size:JpegSize",
    "mean_hue": "heads.mean_hue:MeanHue",
    "ocr": "heads.ocr:TextAccuracy",
    "pick_score": "heads.pick_score:PickScore",
    "sharpness": "heads.sharpness:Sharpness",
    "siglip": "heads.siglip:SiglipHead",
    "segments": "wrappers.segments:Segments",
    "trained": "heads.trained:TrainedHead",
    "video_reward": "heads.video_reward:VideoReward",
    "views": "wrappers.views:Views",
}


def head_class(name: str) -> Any:
    """The class of a named head.

    Raises:
        ValueError: no such head; the message lists those that there are.
    """
    if name not in HEADS:
        raise ValueError(
            f"no reward {name!r}; have {sorted(HEADS)}, "
            "or package.module:attribute, or file.py:attribute"
        )
    module, attribute = HEADS[name].split(":")
    return getattr(import_module(f".{module}", __package__), attribute)
