"""Signatures of scores: which files this user's own align-gen wrote.

Scores that are known are not computed again. So that nobody else can say what is known, a file is
signed with a secret of the user's: whoever sends a file of scores cannot sign it. Reading scores to
compare or to show them needs no signature.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG

from align_gen.files import move, new_file, remove

SIGNATURE = b"align_gen_signature"  # of the schema's metadata
LENGTH = 32  # bytes of the secret


def signature(about: bytes, claims: Iterable[str]) -> bytes | None:
    """The signature of a file: of what it says of itself, and of every row in it.

    Args:
        about: the file's description of itself: heads, provenance, versions.
        claims: what each row claims, in order.

    Returns:
        64 hexadecimal digits; None where this user has no secret and cannot make one.
    """
    secret = _secret()
    if secret is None:
        return None
    digest = hmac.new(secret, about, hashlib.sha256)
    for claim in claims:
        digest.update(b"\n")
        digest.update(claim.encode())
    return digest.hexdigest().encode()


def is_signed(written: bytes | None, about: bytes, claims: Iterable[str]) -> bool:
    """Whether ``written`` is the signature that this user's own align-gen would give."""
    if written is None:
        return False
    right = signature(about, claims)
    return right is not None and hmac.compare_digest(right, written)


# --- the secret -----------------------------------------------------------------------------------


def _secret() -> bytes | None:
    """The user's secret, made at the first call; None where there is no place for one."""
    path = _place()
    with suppress(OSError):
        if not path.exists():
            _make(path)
        return _read(path)
    return None


def _place() -> Path:
    """$ALIGN_GEN_CACHE/key, or ~/.cache/align_gen/key."""
    cache = os.environ.get("ALIGN_GEN_CACHE")
    return Path(cache) / "key" if cache else Path.home() / ".cache" / "align_gen" / "key"


def _make(path: Path) -> None:
    """Write a new secret that nobody else may read; one that is made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".key.{secrets.token_hex(8)}.part")
    try:
        with new_file(part, 0o600) as file:
            file.write(secrets.token_bytes(LENGTH))
        # Under a second name, at once and whole: of two processes, the first one's secret stays.
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError:
            # A disk without hard links.
            move(part, path)
    finally:
        remove(part)


def _read(path: Path) -> bytes | None:
    """The secret in a file; None for a link, and where others may read or have written it."""
    about = path.lstat()
    private = about.st_uid == os.geteuid() and not S_IMODE(about.st_mode) & 0o077
    if not S_ISREG(about.st_mode) or not private or about.st_size != LENGTH:
        return None
    return path.read_bytes()
