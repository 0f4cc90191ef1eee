"""Sign versions and verify signatures: OpenSSF model signing with a key file.

A signature covers exactly the three files that are a version's identity. ``model.sig`` is a
Sigstore bundle around an in-toto statement (https://github.com/ossf/model-signing-spec), created
and verified by ``model_signing``. Older formats that this package accepts are refused here first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import SIGNATURE, required_names
from trunkline.errors import (
    IntegrityError,
    RegistryError,
    TrunklineError,
    UsageError,
    one_line,
    reason_of,
)
from trunkline.files import brief_repr, read_json_object

if TYPE_CHECKING:
    from trunkline.adapters.store import AdapterStore
    from trunkline.registry.records import VersionRecord

_PREDICATE = "https://model_signing/signature/v1.0"
_KEY_HINT = (
    "Create one with `openssl ecparam -genkey -name prime256v1 -noout -out release.pem` and "
    "`openssl ec -in release.pem -pubout -out release.pub`."
)
_PRIVATE_KEY_HINT = (
    "It must be a private key on the curve P-256, P-384 or P-521, in PEM. " + _KEY_HINT
)
_SIGN_HINT = "If you trust it, sign it with `trunkline adapters sign REF --key FILE`."


@dataclass(frozen=True, slots=True)
class Signature:
    """A new signature: the content of ``model.sig``, and the key's fingerprint."""

    data: bytes
    fingerprint: str


def sign_version(
    store: AdapterStore,
    version: VersionRecord,
    key: Path,
    password: str | None = None,
    *,
    actor: str | None = None,
) -> str:
    """Verify a version's digest, sign it, and return the key's fingerprint.

    Raises:
        UsageError: the key can't be used.
        IntegrityError: the artifact is not what the registry recorded.
        RegistryError: the signature can't be written; an earlier one is kept.
    """
    artifact = store.fetch(version, signed=False)
    signature = sign(artifact.folder, key, password)
    store.write_file(version, SIGNATURE, signature.data)
    detail = {"signed_by": signature.fingerprint}
    store.registry.events.append("version.signed", version.ref, detail, actor=actor)
    return signature.fingerprint


def sign(folder: Path, key: Path, password: str | None = None) -> Signature:
    """Sign an artifact without writing to its folder.

    Args:
        folder: an artifact whose digests were checked.
        key: a private elliptic-curve key (P-256, P-384, P-521), PEM.
        password: of an encrypted key.

    Returns:
        The signature; its fingerprint is ``sha256:`` over the public key in PEM.

    Raises:
        UsageError: the key can't be read, is of another type, or the password is wrong.
        RegistryError: the folder for temporary files can't be written.
    """
    signing = _package().signing
    secret = None if password is None else password.encode()
    try:
        fingerprint = _fingerprint(_private_key(key, secret).public_key())
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except TypeError as error:  # the password is missing or superfluous
        raise UsageError(
            f"The key {str(key)!r} can't be used: {reason_of(error)}.",
            "Name the environment variable of its password with --password-from VARIABLE."
            if password is None
            else "Omit --password-from.",
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"The key {str(key)!r} can't be used: {reason_of(error)}.", _PRIVATE_KEY_HINT
        ) from error
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-sign-") as staging:
            output = Path(staging) / SIGNATURE
            signer.sign(_copy_signed_files(folder, Path(staging)), output)
            return Signature(output.read_bytes(), fingerprint)
    except OSError as error:
        raise RegistryError(
            f"The artifact {folder} can't be signed: {reason_of(error)}.",
            "Free space in the folder for temporary files, or set TMPDIR to another one.",
        ) from error


def check_signature(folder: Path, keys: Sequence[Path]) -> str:
    """Verify an artifact's signature and return the fingerprint of its key.

    Args:
        folder: the artifact.
        keys: the trusted public keys, PEM.

    Raises:
        IntegrityError: there is no signature, it is by none of the ``keys``, it is damaged, or the
            files are not those that were signed.
        UsageError: there are no keys, or one can't be read.
    """
    if not keys:
        raise UsageError(
            "A signature is required, but no trusted public key is configured.",
            'Name one in trunkline.toml: [signatures] keys = ["keys/release.pub"].',
        )
    if not os.path.lexists(folder / SIGNATURE):
        raise IntegrityError(f"The artifact {folder} is not signed.", _SIGN_HINT)
    verifying = _package().verifying
    trusted = {key_fingerprint(key): key for key in keys}
    signature = _read_signature(folder / SIGNATURE)
    fingerprint = signed_by(folder)
    if fingerprint not in trusted:
        raise IntegrityError(
            f"The artifact {folder} is signed by the key {brief_repr(fingerprint)}, which is not "
            "trusted here.",
            "Trusted keys: "
            + ", ".join(f"{one[:19]}… ({key.name})" for one, key in trusted.items()),
        )
    _check_covers_identity(signature, folder / SIGNATURE)
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-verify-") as staging:
            copy = Path(staging) / SIGNATURE
            copy.write_text(json.dumps(signature), encoding="utf-8")
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=trusted[fingerprint])
            verifier.set_ignore_unsigned_files(True).verify(folder, copy)
    except Exception as error:  # model_signing and its dependencies raise errors of many types
        raise IntegrityError(
            f"The signature of {folder} is invalid: {reason_of(error)}.",
            "The files are not those that were signed. Restore them from a copy.",
        ) from error
    return fingerprint


def signed_by(folder: Path) -> str | None:
    """The unverified key fingerprint in ``model.sig``; None without a signature.

    Raises:
        IntegrityError: the file is not a signature by a key.
    """
    if not os.path.lexists(folder / SIGNATURE):
        return None
    try:
        hint = _read_signature(folder / SIGNATURE)["verificationMaterial"]["publicKey"]["hint"]
    except (KeyError, TypeError) as error:
        raise _unreadable(folder / SIGNATURE, "it names no key") from error
    return f"sha256:{hint}"


def key_fingerprint(key: Path) -> str:
    """``sha256:`` over a public key in PEM, as ``openssl pkey -pubin -in KEY`` writes it.

    Raises:
        UsageError: the file can't be read, or is not a public elliptic-curve key.
    """
    _package()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _fingerprint(load_pem_public_key(key.read_bytes()))
    except Exception as error:  # cryptography raises errors of several types
        raise UsageError(
            f"The public key {str(key)!r} can't be used: {reason_of(error)}.",
            "It must be a public key in PEM. " + _KEY_HINT,
        ) from error


def _package() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise TrunklineError(
            f"Signatures need a package that can't be imported: {one_line(error)}.",
            "pip install 'trunkline[sign]'",
        ) from error
    return model_signing


def _private_key(path: Path, secret: bytes | None) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(path.read_bytes(), secret)
    if not hasattr(key, "curve"):
        raise ValueError("it is not an elliptic-curve key")
    return key


def _fingerprint(public: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(pem).hexdigest()


def _copy_signed_files(folder: Path, staging: Path) -> Path:
    """A folder with the artifact's name that holds only the signed files."""
    copy = staging / "artifact" / (folder.resolve().name or "artifact")
    copy.mkdir(parents=True)
    for name in _signed_names(folder):
        shutil.copyfile(folder / name, copy / name)
    return copy


def _signed_names(folder: Path) -> tuple[str, ...]:
    """The files that a signature covers: those that the version's digest does."""
    return required_names({path.name for path in folder.iterdir()})


def _read_signature(path: Path) -> dict[str, Any]:
    try:
        if path.is_symlink() or not path.is_file():
            raise _unreadable(path, "it is not a plain file")
        return read_json_object(path)
    except OSError as error:
        raise _unreadable(path, reason_of(error)) from error


def _check_covers_identity(signature: Mapping[str, Any], path: Path) -> None:
    """Check that the statement has the current format and covers exactly the identity."""
    try:
        statement = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
        version, predicate = statement["predicateType"], statement["predicate"]
        method = (predicate["serialization"]["method"], predicate["serialization"]["hash_type"])
        covered = sorted((one["name"], one["algorithm"]) for one in predicate["resources"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, "it has no statement") from error
    names = _signed_names(path.parent)
    expected = sorted((name, "sha256") for name in names)
    if version != _PREDICATE or method != ("files", "sha256") or covered != expected:
        raise IntegrityError(
            f"{path} must sign the sha256 of {', '.join(names)} and nothing else.",
            _SIGN_HINT,
        )


def _unreadable(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"{path} is not a readable signature: {reason}.", _SIGN_HINT)
