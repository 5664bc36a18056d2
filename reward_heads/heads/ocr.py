"""Accuracy of text in pictures, read by an OCR model: a reward that can be verified.

Liu et al., "Flow-GRPO", NeurIPS 2025, arXiv 2505.05470: r = max(1 - N_e / N_ref, 0).
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import RewardHead, check_images

# Raise when scores of the same picture change.
PREPROCESSING = "ocr-1"
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


class TextAccuracy(RewardHead):
    """Scores how exactly a picture shows the text that its prompt quotes, from 0 to 1.

    1 - edits / length of the wanted text, at least 0. Not differentiable.

    Both are compared without white space and in lower case. Several quotations are wanted one after
    the other, as a picture is read from top to bottom. Other text in the picture counts as edits.
    An empty picture scores 0.

    Reads with rapidocr, whose wheel holds its models (small PP-OCR, Chinese and English), through
    onnxruntime; on the CPU, with as many threads as torch has.

    Args:
        text: what is wanted instead of the quotations; "{prompt}" inside it is the prompt.
        confidence: least confidence of a line that counts, in [0, 1].
    """

    range = (0.0, 1.0)

    def __init__(self, text: str | None = None, confidence: float = 0.5):
        if not 0 <= confidence <= 1:
            raise ValueError(f"ocr confidence: want a number in [0, 1], got {confidence}")
        if text is not None and not squeeze(text):
            raise ValueError(f"ocr text: want what is to be written, got {text!r}")
        # Optional libraries, imported as late as their use.
        try:
            import_module("onnxruntime")
            reader = import_module("rapidocr").RapidOCR
        except ImportError as error:
            raise ValueError(
                f"ocr: needs rapidocr and onnxruntime, pip install align_gen[ocr] ({error})"
            ) from error
        self.text = text
        self.reads_prompt = text is None or "{prompt}" in text
        self.confidence = confidence
        threads = {"intra_op_num_threads": torch.get_num_threads(), "inter_op_num_threads": 1}
        options = {f"EngineConfig.onnxruntime.{name}": count for name, count in threads.items()}
        self.reader = reader(params={"Global.log_level": "critical", **options})

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        # First: a prompt without a quotation fails before anything is read.
        wanted = [squeeze(self.wanted(prompt)) for prompt in prompts]
        bytes_ = (media.detach().clamp(0, 1) * 255).round().byte()
        images = bytes_.permute(0, 2, 3, 1).cpu()  # (B, H, W, 3)
        rows = zip(images, wanted, strict=True)
        return torch.tensor([accuracy(self.read(image), text) for image, text in rows])

    def wanted(self, prompt: str) -> str:
        """The text that a prompt asks for.

        Raises:
            ValueError: the prompt quotes nothing.
        """
        if self.text is not None:
            return self.text.replace("{prompt}", prompt)
        quotations = ["".join(found) for found in QUOTED.findall(prompt)]
        if not squeeze("".join(quotations)):
            raise ValueError(
                f"ocr: prompt {prompt!r} quotes no text; "
                "want it in double quotes, or the option text"
            )
        return "".join(quotations)

    def read(self, image: Tensor) -> str:
        """Lines of a picture (H, W, 3) of bytes, from top to bottom, squeezed."""
        blue_first = image.flip(-1).contiguous().numpy()
        lines = self.reader(blue_first, use_cls=False, text_score=self.confidence).txts
        return squeeze("".join(lines or ()))

    @cached_property
    def sha256(self) -> str:
        """A hash of the models in the installed wheel."""
        models = Path(str(import_module("rapidocr").__file__)).parent / "models"
        digest = hashlib.sha256()
        for file in sorted(models.glob("*.onnx")):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def provenance(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.sha256,
            "preprocessing": f"{PREPROCESSING}-rapidocr-{version('rapidocr')}",
            "dtype": "float32",
            "options": {"text": self.text, "confidence": self.confidence},
        }


def squeeze(text: str) -> str:
    """Without white space, in lower case."""
    return "".join(text.split()).lower()


def accuracy(read: str, wanted: str) -> float:
    """1 - edits / len(wanted), at least 0; ``wanted`` is not empty."""
    return 1 - min(edits(read, wanted), len(wanted)) / len(wanted)


def edits(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions from one to the other."""
    # One row of the table of distances at a time.
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above = row
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
    return row[-1]
