"""Signatures: which are valid, which are refused, and which keys are trusted."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from made_keys import make_key
from trunkline.adapters.artifact import REQUIRED, SIGNATURE, read_artifact
from trunkline.adapters.signing import Signature, check_signature, key_fingerprint, signed_by
from trunkline.adapters.signing import sign as make_signature
from trunkline.errors import IntegrityError, RegistryError, TrunklineError, UsageError


def sign(folder: Path, key: Path, password: str | None = None) -> str:
    """Sign a folder, write the signature, and return the key's fingerprint."""
    made = make_signature(folder, key, password)
    (folder / SIGNATURE).write_bytes(made.data)
    return made.fingerprint


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs ``release`` and ``other``."""
    folder = tmp_path_factory.mktemp("keys")
    make_key(folder, "release")
    make_key(folder, "other")
    return folder


@pytest.fixture(scope="session")
def signed_once(tmp_path_factory: pytest.TempPathFactory, sound: Path, keys: Path) -> Path:
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("signed") / "artifact"))
    sign(folder, keys / "release.pem")
    return folder


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    """A copy of a signed artifact that a test may damage."""
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


def refused(folder: Path, *keys: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        check_signature(folder, keys)
    return str(caught.value)


# --------------------------------------------------------------------------------- valid signatures


def test_signature_is_verified_with_the_public_key(signed: Path, keys: Path) -> None:
    public = keys / "release.pub"
    assert check_signature(signed, [public]) == key_fingerprint(public)


def test_one_of_several_keys_is_enough(signed: Path, keys: Path) -> None:
    both = [keys / "other.pub", keys / "release.pub"]
    assert check_signature(signed, both) == key_fingerprint(keys / "release.pub")


def test_signing_returns_the_fingerprint_of_the_key(artifact: Path, keys: Path) -> None:
    assert sign(artifact, keys / "release.pem") == key_fingerprint(keys / "release.pub")


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_other_curves_sign_too(artifact: Path, tmp_path: Path, curve: str) -> None:
    key = make_key(tmp_path, "key", curve)
    assert sign(artifact, key) == check_signature(artifact, [key.with_suffix(".pub")])


def test_encrypted_key_signs_with_its_password(artifact: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path, "key", password="tr\u00fcnk")
    assert sign(artifact, key, "tr\u00fcnk")


def test_signed_artifact_is_still_an_artifact_of_the_same_identity(
    signed: Path, sound: Path
) -> None:
    assert read_artifact(signed).digest == read_artifact(sound).digest


def test_signature_does_not_cover_mutable_files(signed: Path, keys: Path) -> None:
    (signed / "README.md").write_text("another card")
    (signed / "provenance.json").write_text("{}")
    assert check_signature(signed, [keys / "release.pub"])


def test_signature_moves_with_the_folder(signed: Path, keys: Path, tmp_path: Path) -> None:
    signed.rename(tmp_path / "elsewhere")
    assert check_signature(tmp_path / "elsewhere", [keys / "release.pub"])


def test_second_signature_replaces_the_first(signed: Path, keys: Path) -> None:
    sign(signed, keys / "other.pem")
    assert signed_by(signed) == key_fingerprint(keys / "other.pub")
    assert sorted(path.name for path in signed.iterdir()) == sorted({*REQUIRED, SIGNATURE})


def test_model_signing_command_verifies_the_signature(signed: Path, keys: Path) -> None:
    """OpenSSF's own tool can verify a version."""
    args = ["verify", "key", str(signed), "--signature", str(signed / SIGNATURE)]
    args += ["--public_key", str(keys / "release.pub"), "--ignore_unsigned_files"]
    (signed / "README.md").write_text("lies outside of the identity")
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *args], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------- refused signatures


def test_unsigned_artifact_is_refused(sound: Path, keys: Path) -> None:
    assert "is not signed" in refused(sound, keys / "release.pub")


def test_untrusted_key_is_refused(signed: Path, keys: Path) -> None:
    assert "is not trusted here" in refused(signed, keys / "other.pub")


@pytest.mark.parametrize("name", REQUIRED)
def test_changed_file_is_refused(signed: Path, keys: Path, name: str) -> None:
    data = bytearray((signed / name).read_bytes())
    data[len(data) // 2] ^= 4
    (signed / name).write_bytes(data)
    assert "is invalid" in refused(signed, keys / "release.pub")


def test_signature_of_another_artifact_is_refused(signed: Path, artifact: Path, keys: Path) -> None:
    manifest = json.loads((artifact / "trunkline.json").read_text())
    manifest["data"]["fingerprint"] = "another"
    (artifact / "trunkline.json").write_text(json.dumps(manifest))
    shutil.copyfile(signed / SIGNATURE, artifact / SIGNATURE)
    assert "is invalid" in refused(artifact, keys / "release.pub")


def test_missing_file_is_refused(signed: Path, keys: Path) -> None:
    (signed / "adapter_config.json").unlink()
    assert "is invalid" in refused(signed, keys / "release.pub")


def test_linked_signature_is_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    (signed / SIGNATURE).rename(tmp_path / "model.sig")
    (signed / SIGNATURE).symlink_to(tmp_path / "model.sig")
    assert "not a plain file" in refused(signed, keys / "release.pub")


def _payload(bundle: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


def _only(*names: str) -> Callable[[dict[str, Any]], None]:
    """Reduce a statement to some of the files."""

    def change(statement: dict[str, Any]) -> None:
        kept = [one for one in statement["predicate"]["resources"] if one["name"] in names]
        statement["predicate"]["resources"] = kept

    return change


def _old_form(statement: dict[str, Any]) -> None:
    statement["predicateType"] = "https://model_signing/Digests/v0.1"


BUNDLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no key": lambda bundle: bundle["verificationMaterial"].pop("publicKey"),
    "hint of nothing": lambda bundle: bundle["verificationMaterial"]["publicKey"].update(hint=None),
    "no statement": lambda bundle: bundle.pop("dsseEnvelope"),
    "payload of nothing": lambda bundle: bundle["dsseEnvelope"].update(payload=""),
    "no signatures": lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
    "empty signature": lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig=""),
    "another media type": lambda bundle: bundle.update(mediaType="text/plain"),
    "weights left out": lambda bundle: _payload(bundle, _only("trunkline.json")),
    "nothing covered": lambda bundle: _payload(bundle, _only()),
    "old form": lambda bundle: _payload(bundle, _old_form),
}


@pytest.mark.parametrize("what", BUNDLES)
def test_forged_bundle_is_refused(signed: Path, keys: Path, what: str) -> None:
    bundle = json.loads((signed / SIGNATURE).read_text())
    BUNDLES[what](bundle)
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    refused(signed, keys / "release.pub")


def test_valid_signature_of_some_of_the_files_is_refused(
    artifact: Path, keys: Path, tmp_path: Path
) -> None:
    """The owner of the key signed a folder that held only the configuration."""
    from model_signing import signing

    part = tmp_path / "part"
    part.mkdir()
    shutil.copyfile(artifact / "adapter_config.json", part / "adapter_config.json")
    signer = signing.Config().use_elliptic_key_signer(private_key=keys / "release.pem")
    signer.sign(part, artifact / SIGNATURE)
    assert "nothing else" in refused(artifact, keys / "release.pub")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"{" * 100_000])
def test_malformed_bundle_is_refused(signed: Path, keys: Path, data: bytes) -> None:
    (signed / SIGNATURE).write_bytes(data)
    refused(signed, keys / "release.pub")


def test_any_flipped_bit_of_the_signature_is_refused_or_means_the_same(
    signed: Path, keys: Path
) -> None:
    signature = (signed / SIGNATURE).read_bytes()
    sound = json.loads(signature)
    for position in range(0, len(signature), 37):
        data = bytearray(signature)
        data[position] ^= 1 << position % 8
        (signed / SIGNATURE).write_bytes(data)
        try:
            check_signature(signed, [keys / "release.pub"])
        except IntegrityError:
            continue
        changed = json.loads(data)
        changed["verificationMaterial"].setdefault("tlogEntries", [])
        same = ("payload", "payloadType")
        kept = [changed["dsseEnvelope"].get(key) for key in same]
        assert kept == [sound["dsseEnvelope"][key] for key in same], position


# ------------------------------------------------------------------------------------- usage errors


def test_no_trusted_key_is_a_usage_error(signed: Path) -> None:
    with pytest.raises(UsageError, match="no trusted public key") as caught:
        check_signature(signed, [])
    assert "[signatures]" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"])
def test_malformed_public_key_is_a_usage_error(signed: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.pub").write_text(text)
    with pytest.raises(UsageError, match=r"bad\.pub"):
        check_signature(signed, [tmp_path / "bad.pub"])


def test_missing_key_is_a_usage_error(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pem"):
        sign(artifact, tmp_path / "none.pem")


def test_public_key_does_not_sign(artifact: Path, keys: Path) -> None:
    with pytest.raises(UsageError, match=r"release\.pub"):
        sign(artifact, keys / "release.pub")


def test_missing_password_hint_names_the_option(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        sign(artifact, make_key(tmp_path, "key", password="right"))
    assert "--password-from" in (caught.value.hint or "")


@pytest.mark.parametrize("password", [None, "wrong"])
def test_wrong_password_is_a_usage_error(
    artifact: Path, tmp_path: Path, password: str | None
) -> None:
    with pytest.raises(UsageError, match="can't be used"):
        sign(artifact, make_key(tmp_path, "key", password="right"), password)
    assert not (artifact / SIGNATURE).exists()


def test_key_on_another_curve_is_a_usage_error(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be used"):
        sign(artifact, make_key(tmp_path, "key", "SECP256K1"))


def test_key_without_a_curve_is_refused(artifact: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    (tmp_path / "ed.pem").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(UsageError, match="it is not an elliptic-curve key"):
        sign(artifact, tmp_path / "ed.pem")


def test_signing_writes_nothing_into_the_artifact(artifact: Path, keys: Path) -> None:
    made = make_signature(artifact, keys / "release.pem")
    assert isinstance(made, Signature)
    assert not (artifact / SIGNATURE).exists()


def test_full_temporary_folder_is_an_error(
    artifact: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RegistryError, match="No space left"):
        make_signature(artifact, keys / "release.pem")


def test_missing_package_hint_names_the_extra(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(TrunklineError) as caught:
        check_signature(signed, [keys / "release.pub"])
    assert caught.value.hint == "pip install 'trunkline[sign]'"
