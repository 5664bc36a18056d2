"""Encoded texts on disk, so that a large encoder runs once for a text, whatever run asks."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# Elements of every weight that its fingerprint looks at.
PROBES = 4096


def default_folder() -> Path:
    """$ALIGN_GEN_CACHE, or the user's cache."""
    cache = os.environ.get("ALIGN_GEN_CACHE") or Path.home() / ".cache" / "align_gen"
    return Path(cache) / "prompts"


def fingerprint(encoders: Mapping[str, Any], *settings: Any) -> str:
    """A hash of what decides an encoding: configurations, weights, and the settings.

    Of each weight, some evenly spaced elements are looked at.
    """
    digest = sha256(repr(settings).encode())
    for name, encoder in sorted(encoders.items()):
        digest.update(f"{name}{encoder.config.to_json_string()}".encode())
        for key, weight in encoder.state_dict().items():
            flat = weight.detach().flatten()
            some = flat[:: max(1, len(flat) // PROBES)].float().cpu()
            digest.update(f"{key}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:32]


class PromptCache:
    """One safetensors file a text, in a folder for each fingerprint.

    Beyond ``limit`` bytes, the files that were unused for longest are deleted.

    Processes may share a folder: files appear whole, and a file that is gone or damaged counts as
    missing.
    """

    def __init__(self, folder: Path | None = None, limit: int = 4 * 2**30):
        self.folder = folder or default_folder()
        self.limit = limit

    def get(self, key: str, text: str) -> dict[str, Tensor] | None:
        """The tensors of a text, or None."""
        file = self._file(key, text)
        try:
            tensors: dict[str, Tensor] = load_file(file)
            # The time of the last use, by which files are deleted.
            os.utime(file)
        except (OSError, SafetensorError):
            return None
        return tensors

    def put(self, key: str, encoded: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the tensors of some texts; a disk that is full or forbidden is passed over."""
        try:
            for text, tensors in encoded.items():
                file = self._file(key, text)
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(f".{os.getpid()}.part")
                rows = {n: value.detach().cpu().contiguous() for n, value in tensors.items()}
                # clones: the rows are views of one batch, which safetensors does not write
                save_file({name: value.clone() for name, value in rows.items()}, part)
                os.replace(part, file)
            self._trim()
        except (OSError, SafetensorError):
            pass

    def _file(self, key: str, text: str) -> Path:
        return self.folder / key / f"{sha256(text.encode()).hexdigest()}.safetensors"

    def _trim(self) -> None:
        """Delete the files that were unused for longest, down to the limit."""
        files = [(file.stat(), file) for file in self.folder.glob("*/*.safetensors")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime_ns):
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            total -= stat.st_size
