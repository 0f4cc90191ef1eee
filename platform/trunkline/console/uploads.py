"""Files that were uploaded to train on: ``uploads/<id>/<name>`` in the workspace.

The id is a digest of the content, so that the same file is stored once. Runs record the path, and
an evaluation reads the file again, so it is never removed here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from trunkline.console.access import Access
from trunkline.console.pages import N_
from trunkline.data.readers import FileOptions, read_columns
from trunkline.errors import DataError, IntegrityError, NotFoundError, UsageError
from trunkline.files import read_json_object, write_atomically
from trunkline.refs import shown, valid_name
from trunkline.workspace import Workspace

MAX_BYTES = 10_000_000
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".conll")

_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_OWNER = "upload.json"
_UNREADABLE = N_(
    "Save it as UTF-8, in CSV with commas and in TSV with tabs, or train it in a terminal, which "
    "has options for reading: trunkline train --data FILE."
)
"""What to do about a file whose columns can't be read; pages have no options for that."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in the workspace.

    Attributes:
        id: 16 hexadecimal digits.
        columns: as its first row names them.
    """

    id: str
    file: Path
    columns: tuple[str, ...]


def keep(workspace: Workspace, name: str, content: bytes, access: Access) -> Upload:
    """Store an uploaded file, unless the workspace has it.

    Args:
        name: that the browser gave; only its stem and suffix are used.

    Raises:
        UsageError: no file, or one of another kind.
        DataError: its columns can't be read.
    """
    base = PureWindowsPath(PurePosixPath(name).name).name
    suffix = Path(base).suffix.lower()
    if not base or not content:
        raise UsageError(N_("No file was chosen, or it is empty."), N_("Choose a file with rows."))
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{shown(base)} is not a file of rows.", f"Upload one of: {', '.join(SUFFIXES)}."
        )
    id = hashlib.sha256(suffix.encode() + b"\0" + content).hexdigest()[:16]
    folder = _folder(workspace, id)
    existing = _file_in(folder)
    file = existing or folder / f"{valid_name(Path(base).stem, 'data') or 'data'}{suffix}"
    if existing is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    try:
        columns = tuple(read_columns(file, FileOptions()))
    except DataError as error:
        if existing is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise DataError(error.message, _hint(suffix, error)) from error
    owners = [*_owners(folder), access.actor or ""]
    write_atomically(folder / _OWNER, json.dumps({"owners": list(dict.fromkeys(owners))}))
    return Upload(id, file, columns)


def _hint(suffix: str, error: DataError) -> str | None:
    """What to do about a file; options of the command line don't help here."""
    return _UNREADABLE if suffix in (".csv", ".tsv") else error.hint


def find(workspace: Workspace, id: str, access: Access) -> Upload:
    """An upload of the same key; an administrator for every adapter finds all of them.

    Raises:
        NotFoundError: there is none.
    """
    folder = _folder(workspace, id) if _ID.fullmatch(id) else None
    file = folder and _file_in(folder)
    if folder is None or file is None or not _may_see(folder, access):
        raise NotFoundError(N_("There is no such upload."), N_("Upload the file under Train."))
    return Upload(id, file, tuple(read_columns(file, FileOptions())))


def _may_see(folder: Path, access: Access) -> bool:
    everything = access.may("admin") and access.sees_everything
    return everything or (access.actor or "") in _owners(folder)


def _owners(folder: Path) -> list[str]:
    try:
        owners = read_json_object(folder / _OWNER).get("owners")
    except (OSError, IntegrityError):
        return []
    return [one for one in owners if isinstance(one, str)] if isinstance(owners, list) else []


def _folder(workspace: Workspace, id: str) -> Path:
    return workspace.root / "uploads" / id


def _file_in(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    return next((one for one in sorted(folder.iterdir()) if one.suffix in SUFFIXES
                 and one.name != _OWNER), None)  # fmt: skip
