"""OpenMP's spinning is limited unless the user chose, and contended cores are reported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trunkline.threads import SPIN_COUNT, contention_warning, limit_spinning


def test_spinning_is_limited_by_default() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": str(SPIN_COUNT)}


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_user_policy_is_kept(name: str) -> None:
    environment = {name: "mine"}
    limit_spinning(environment)
    assert environment == {name: "mine"}


def test_program_limits_spinning_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    program = (
        "import os, sys\n"
        "from trunkline.cli import main\n"
        "sys.argv[1:] = ['--version']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules, file=sys.stderr)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stderr
    assert output.splitlines()[-1] == f"{SPIN_COUNT} False"


def test_idle_machine_gives_no_warning() -> None:
    assert contention_warning(lambda: (0.4, 3.0, 3.0), cores=2) is None


def test_busy_machine_gives_one_sentence_with_the_load() -> None:
    assert "keep 1.7 of 2 cores busy" in (
        contention_warning(lambda: (1.7, 0.0, 0.0), cores=2) or ""
    )


def test_one_busy_process_among_many_cores_is_no_contention() -> None:
    assert contention_warning(lambda: (1.2, 0.0, 0.0), cores=16) is None
