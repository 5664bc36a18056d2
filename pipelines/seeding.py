"""Randomness as a function of what it is for: rank, batch and history never enter."""

from hashlib import sha256

from torch import Generator


def seed_of(seed: int, purpose: str, step: int = 0, index: int | str = 0) -> int:
    """A 31-bit seed from (seed, purpose, step, index).

    Different arguments give independent streams.
    """
    digest = sha256(f"{seed}/{purpose}/{step}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0, index: int | str = 0) -> Generator:
    """A CPU generator seeded by ``seed_of``: the same numbers on every device."""
    return Generator().manual_seed(seed_of(seed, purpose, step, index))
