"""``trunkline console`` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.merge

PROGRAM = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
import trunkline
from trunkline.console.app import create_console_app
from trunkline.serving.settings import ServerSettings

platform = trunkline.open(Path(sys.argv[1]), no_plugins=True)
app = create_console_app(platform, ServerSettings())
with TestClient(app, base_url="http://localhost") as client:
    for path in ("", "/adapters", "/runs", "/serving", "/audit", "/keys", "/plugins", "/datasets",
                 "/requests", "/compare"):
        assert client.get(f"/console{path}").status_code == 200, path
heavy = ("torch", "transformers", "peft", "sklearn", "pandas", "pyarrow", "datasets", "scipy")
print(*[name for name in heavy if name in sys.modules])
"""


def test_console_imports_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
