"""Lock the packages of the images to hashes, as pip resolves them on this machine.

    python deploy/docker/lock.py [OPTION OF PIP …]

Run it with the Python version and on the platform of the images. It writes ``requirements.txt``,
and ``torch.txt`` with torch and its CUDA libraries. Builds of torch differ between indexes, so
``torch.txt`` is not part of the repository: write it against the index that the image is built
from, such as ``--extra-index-url URL``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "images,postgres,s3,sign"
REQUIREMENTS = (f".[{EXTRAS}]", "torch==2.13.0", "setuptools>=77,<90")
OF_TORCH = ("torch", "triton", "nvidia", "cuda")
"""How the names of packages begin that come from torch's index."""


def resolve(options: list[str]) -> dict[str, dict[str, Any]]:
    """Name → the file that pip would install; any build of torch is accepted."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(pin for pin in pins if not pin.startswith("torch=="))
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
        command += ["--ignore-installed", "--disable-pip-version-check", "--report", "-"]
        command += ["-c", constraints.name, *options, *REQUIREMENTS]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    files = {one["metadata"]["name"].lower(): one for one in json.loads(done.stdout)["install"]}
    del files["trunkline"]
    return files


def locked(file: dict[str, Any]) -> str:
    """The requirement that allows this one file only."""
    name, version = file["metadata"]["name"], file["metadata"]["version"]
    digest = file["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={version} --hash=sha256:{digest}\n"


def main(options: list[str]) -> None:
    files = resolve(options)
    for name, of_torch in (("torch.txt", True), ("requirements.txt", False)):
        chosen = [one for one in sorted(files) if one.startswith(OF_TORCH) == of_torch]
        path = ROOT / "deploy" / "docker" / name
        path.write_text("".join(locked(files[one]) for one in chosen), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
