"""Key pairs for tests of signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_key(folder: Path, name: str, curve: str = "SECP256R1", password: str = "") -> Path:
    """Write a key pair ``name.pem`` and ``name.pub``; return the path of the private key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    hidden: Any = serialization.NoEncryption()
    if password:
        hidden = serialization.BestAvailableEncryption(password.encode())
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private = folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, spki))
    return private
