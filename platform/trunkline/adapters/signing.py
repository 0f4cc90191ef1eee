"""Signatures of versions: OpenSSF model signing with a key file.

Owns: what is signed, the form of ``model.sig`` that is accepted, and which key counts. Must not
know: the registry, the store, or where keys come from.

Signed are exactly the three files that are a version's identity. The signature is a Sigstore
bundle around an in-toto statement (https://github.com/ossf/model-signing-spec), made and verified
by ``model_signing``; older forms that this package would let pass are refused here beforehand.
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
from typing import Any

from trunkline.adapters.artifact import REQUIRED, SIGNATURE
from trunkline.errors import IntegrityError, RegistryError, TrunklineError, UsageError
from trunkline.files import brief_repr, read_json_object

_PREDICATE = "https://model_signing/signature/v1.0"
_MADE_BY_KEY = (
    "Make one with `openssl ecparam -genkey -name prime256v1 -noout -out release.pem` and "
    "`openssl ec -in release.pem -pubout -out release.pub`."
)
_PRIVATE = "It must be a private key on the curve P-256, P-384 or P-521, in PEM. " + _MADE_BY_KEY
_SIGN_IT = "Sign it with `trunkline adapters sign REF --key FILE`, if you trust it."


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that was just made: what ``model.sig`` is to hold, and the key's fingerprint."""

    data: bytes
    fingerprint: str


def sign(folder: Path, key: Path, password: str | None = None) -> Signature:
    """Sign an artifact; nothing is written into it.

    Args:
        folder: the artifact; its digests were checked.
        key: a private elliptic key (P-256, P-384, P-521), PEM.
        password: of an encrypted key.

    Returns:
        The signature, with ``sha256:`` over the key's public half in PEM as its fingerprint.

    Raises:
        UsageError: the key can't be read, is of another kind, or the password is wrong.
        RegistryError: the folder for temporary files can't be written.
    """
    signing = _package().signing
    secret = None if password is None else password.encode()
    try:
        fingerprint = _fingerprint(_private_key(key, secret).public_key())
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except TypeError as error:  # a password that is missing, or that none was needed
        raise UsageError(
            f"The key {str(key)!r} can't be used: {_reason(error)}.",
            "Name the variable that holds its password with --password-from VARIABLE."
            if password is None
            else "Leave --password-from away.",
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"The key {str(key)!r} can't be used: {_reason(error)}.", _PRIVATE
        ) from error
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-sign-") as staging:
            made = Path(staging) / SIGNATURE
            signer.sign(_identity_alone(folder, Path(staging)), made)
            return Signature(made.read_bytes(), fingerprint)
    except OSError as error:
        raise RegistryError(
            f"The artifact {folder} can't be signed: {error.strerror or error}.",
            "Make room in the folder for temporary files, or name another with TMPDIR.",
        ) from error


def check_signature(folder: Path, keys: Sequence[Path]) -> str:
    """The fingerprint of the key that signed an artifact, one of those that count.

    Args:
        folder: the artifact.
        keys: public keys, PEM.

    Raises:
        IntegrityError: there is no signature, it is not of one of the ``keys``, it is damaged, or
            the files are not those that were signed.
        UsageError: there are no keys, or one can't be read.
    """
    if not keys:
        raise UsageError(
            "A signature is asked for, but no public key is known that counts.",
            'Name it in trunkline.toml: [signatures] keys = ["keys/release.pub"].',
        )
    if not os.path.lexists(folder / SIGNATURE):
        raise IntegrityError(f"The artifact {folder} is not signed.", _SIGN_IT)
    verifying = _package().verifying
    known = {key_fingerprint(key): key for key in keys}
    signature = _read_signature(folder / SIGNATURE)
    said = signed_by(folder)
    if said not in known:
        raise IntegrityError(
            f"The artifact {folder} is signed by the key {brief_repr(said)}, which does not count "
            "here.",
            "Keys that count: " + ", ".join(f"{one[:19]}… ({known[one].name})" for one in known),
        )
    _check_covers_identity(signature, folder / SIGNATURE)
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-verify-") as staging:
            copy = Path(staging) / SIGNATURE
            copy.write_text(json.dumps(signature), encoding="utf-8")
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=known[said])
            verifier.set_ignore_unsigned_files(True).verify(folder, copy)
    except Exception as error:  # the packages below raise what they like on a foreign file
        raise IntegrityError(
            f"The signature of {folder} does not hold: {_reason(error)}.",
            "The files are not those that were signed. Restore them from a copy.",
        ) from error
    return said


def signed_by(folder: Path) -> str | None:
    """The fingerprint that ``model.sig`` names, verified by nobody; None without a signature.

    Raises:
        IntegrityError: the file is no signature by a key.
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
        UsageError: the file can't be read, or holds no public elliptic key.
    """
    _package()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _fingerprint(load_pem_public_key(key.read_bytes()))
    except Exception as error:  # cryptography has several errors for what is no key
        raise UsageError(
            f"The public key {str(key)!r} can't be used: {_reason(error)}.",
            "It must be a public key in PEM. " + _MADE_BY_KEY,
        ) from error


def _package() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise TrunklineError(
            f"Signatures need a package that can't be imported: {error}.",
            "pip install 'trunkline[sign]'",
        ) from error
    return model_signing


def _private_key(path: Path, secret: bytes | None) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(path.read_bytes(), secret)
    if not hasattr(key, "curve"):
        raise ValueError("it is no elliptic key")
    return key


def _fingerprint(public: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(pem).hexdigest()


def _identity_alone(folder: Path, staging: Path) -> Path:
    """A folder of the artifact's name with nothing but the files that are signed."""
    alone = staging / "artifact" / (folder.resolve().name or "artifact")
    alone.mkdir(parents=True)
    for name in REQUIRED:
        shutil.copyfile(folder / name, alone / name)
    return alone


def _read_signature(path: Path) -> dict[str, Any]:
    try:
        if path.is_symlink() or not path.is_file():
            raise _unreadable(path, "it is not a plain file")
        return read_json_object(path)
    except OSError as error:
        raise _unreadable(path, _reason(error)) from error


def _check_covers_identity(signature: Mapping[str, Any], path: Path) -> None:
    """The statement is of the present form and about exactly the three files, by sha256."""
    try:
        statement = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
        form, predicate = statement["predicateType"], statement["predicate"]
        method = (predicate["serialization"]["method"], predicate["serialization"]["hash_type"])
        covered = sorted((one["name"], one["algorithm"]) for one in predicate["resources"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, "it holds no statement") from error
    wanted = sorted((name, "sha256") for name in REQUIRED)
    if form != _PREDICATE or method != ("files", "sha256") or covered != wanted:
        raise IntegrityError(
            f"{path} does not sign {', '.join(REQUIRED)} by their sha256, and these alone.",
            _SIGN_IT,
        )


def _unreadable(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"{path} is no signature that can be read: {reason}.", _SIGN_IT)


def _reason(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
