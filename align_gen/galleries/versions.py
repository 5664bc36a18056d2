"""Versions of what takes part in a score: another version may give another number."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "align-gen", "torch", "torchvision", "open_clip_torch", "transformers", "numpy", "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of the installed packages that take part in a score."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
