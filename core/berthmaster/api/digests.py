"""The digest by which two programs speak of one certificate without showing it."""

from __future__ import annotations

import hashlib


def certificate_digest(pem: bytes) -> str:
    """Return 32 hexadecimal digits that name a certificate with its chain, PEM, byte for byte."""
    return hashlib.sha256(pem).hexdigest()[:32]
