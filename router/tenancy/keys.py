"""API keys: `glr_<id>_<secret>`.

The id finds the key in the database and may be shown. The secret is 32 random bytes, so one SHA-256 over the whole key
is as good as a slow hash: there is nothing to guess. Only the digest is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

PREFIX = "glr"
ID_LENGTH = 12
LONGEST = 200
"""Characters; what is longer is no key, and need not be hashed to know it."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key on the one occasion that it is known. `text` is for its owner."""

    id: str
    text: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        return digest(self.text)


def mint() -> NewKey:
    """A new key, of 256 random bits."""
    id = secrets.token_hex(ID_LENGTH // 2)
    return NewKey(id, f"{PREFIX}_{id}_{secrets.token_urlsafe(32)}")


def id_of(text: str) -> str | None:
    """The id in a key's text; None if that is no key."""
    prefix, _, rest = text.partition("_")
    id, _, secret = rest.partition("_")
    well_formed = len(text) <= LONGEST and prefix == PREFIX and len(id) == ID_LENGTH and bool(secret) and text.isascii()
    return id if well_formed else None


def digest(text: str) -> bytes:
    """SHA-256, which is enough for what cannot be guessed."""
    return hashlib.sha256(text.encode()).digest()


def same(digest: bytes, text: str) -> bool:
    """Whether `text` is the key of that digest, in a time that does not tell how nearly."""
    return hmac.compare_digest(digest, hashlib.sha256(text.encode()).digest())
