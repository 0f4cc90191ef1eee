"""Compute and energy of a training, with simulated energy counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from trunkline.training.run_info import EnergyMeter, compute_report


def package(folder: Path, name: str, microjoules: int, span: int = 1_000_000) -> Path:
    made = folder / name
    made.mkdir(exist_ok=True)
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text(f"{span}\n")
    return made


def test_meter_adds_the_packages(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 100_000)
    package(tmp_path, "intel-rapl:1", 500_000)
    meter = EnergyMeter(tmp_path)
    package(tmp_path, "intel-rapl:0", 300_000)
    package(tmp_path, "intel-rapl:1", 600_000)
    assert meter.read() == pytest.approx(0.3)


def test_part_of_a_package_is_not_counted_twice(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        package(tmp_path, name, 0)
    meter = EnergyMeter(tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        package(tmp_path, name, 200_000)
    assert meter.read() == pytest.approx(0.2)


def test_counter_that_wraps_around_continues(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 900_000)
    meter = EnergyMeter(tmp_path)
    package(tmp_path, "intel-rapl:0", 100_000)
    assert meter.read() == pytest.approx(0.2)


def test_counter_that_disappears_gives_no_value(tmp_path: Path) -> None:
    made = package(tmp_path, "intel-rapl:0", 0)
    meter = EnergyMeter(tmp_path)
    (made / "energy_uj").unlink()
    assert meter.read() is None


def test_machine_without_counters_gives_no_value(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "nothing").read() is None


@pytest.mark.parametrize(("device", "why"), [("cpu", "resumed"), ("cuda", "the device cuda")])
def test_missing_energy_is_explained(device: str, why: str) -> None:
    energy = compute_report(parameters=10, tokens=5, device=device, meter=None)["energy"]
    assert energy["joules"] is None
    assert why in energy["how"]
