"""The manifest of a base that ``pull`` converted: its source, its identity and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from trunkline.bases.identity import damaged, json_object
from trunkline.bases.sources import MANIFEST
from trunkline.files import indented_json, validation_problem, write_atomically

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ManifestFile(_Strict):
    """Size and digest of one file."""

    bytes: NonNegativeInt
    sha256: Sha256


class BaseManifest(_Strict):
    """``trunkline-base.json``; ``digest`` is the identity of the base."""

    format: Literal[1] = 1
    name: str
    source: str
    license: str
    wheel_sha256: Sha256
    gguf_sha256: Sha256
    digest: Sha256
    architecture: str
    parameters: PositiveInt
    dtype: str
    layers: PositiveInt
    hidden_size: PositiveInt
    vocabulary: PositiveInt
    context: PositiveInt
    converted_with: dict[str, str]
    files: dict[str, ManifestFile]


def read_manifest(folder: Path) -> BaseManifest:
    """The manifest of the base in ``folder``.

    Raises:
        BaseModelError: it is missing or malformed.
    """
    path = folder / MANIFEST
    data = json_object(path)
    try:
        return BaseManifest.model_validate(data)
    except ValidationError as error:
        raise damaged(path, f"is invalid: {validation_problem(error)}") from error


def write_manifest(folder: Path, manifest: BaseManifest) -> None:
    """Write the manifest of the base in ``folder``."""
    write_atomically(folder / MANIFEST, indented_json(manifest.model_dump()))
