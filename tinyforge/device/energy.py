"""Energy, where the machine measures it itself. Files of Linux under ``root``, which tests replace.

In this order: Intel's and AMD's RAPL counters (the whole package), power sensors (hwmon power*_input; INA voltage times
current, as on Jetson boards), the Raspberry Pi 5's power chip (the rails it regulates, less than the board draws).
Source: Linux documentation, power/powercap and hwmon/sysfs-interface; Raspberry Pi documentation, computers/os.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .conditions import ROOT, read_number, read_text, vcgencmd

SAMPLE_SECONDS = 0.1
RAIL = re.compile(r"(\w+)_([AV])\s+\w+\(\d+\)=([0-9.]+)[AV]")


class Rapl:
    """Joules so far, from counters that wrap around."""

    def __init__(self, zones: Iterable[Path]) -> None:
        self.source = "rapl"
        self._zones = list(zones)
        self._before = {zone: read_number(zone / "energy_uj") or 0.0 for zone in self._zones}
        self._joules = 0.0

    def joules(self) -> float:
        for zone in self._zones:
            now = read_number(zone / "energy_uj") or 0.0
            wrapped = (read_number(zone / "max_energy_range_uj") or 0.0) if now < self._before[zone] else 0.0
            self._joules += (now - self._before[zone] + wrapped) / 1e6
            self._before[zone] = now
        return self._joules

    def close(self) -> None:
        pass


class Sensor:
    """Joules so far, from a power sensor that a thread reads every ``period`` seconds, too."""

    def __init__(
        self,
        source: str,
        watts: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        period: float = SAMPLE_SECONDS,
    ) -> None:
        self.source = source
        self._watts, self._clock, self._period = watts, clock, period
        self._time, self._power, self._joules = clock(), watts(), 0.0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            self.joules()

    def joules(self) -> float:
        with self._lock:
            now, power = self._clock(), self._watts()
            self._joules += (now - self._time) * (power + self._power) / 2
            self._time, self._power = now, power
            return self._joules

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def open_meter(root: Path = ROOT) -> Rapl | Sensor | None:
    """What measures energy here; None where nothing does, or only the superuser may read it."""
    zones = [
        zone
        for zone in sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]"))
        if read_text(zone / "name") != "psys" and read_text(zone / "energy_uj")  # psys: the packages, and more
    ]
    if zones:
        return Rapl(zones)
    chips = [folder for folder in sorted(root.glob("sys/class/hwmon/hwmon*")) if hwmon_watts(folder) is not None]
    if chips:
        return Sensor(f"hwmon {read_text(chips[0] / 'name')}", lambda: hwmon_watts(chips[0]) or 0.0)
    if rail_watts(vcgencmd(root, "pmic_read_adc")) is not None:
        return Sensor("pmic rails", lambda: rail_watts(vcgencmd(root, "pmic_read_adc")) or 0.0)
    return None


def hwmon_watts(folder: Path) -> float | None:
    """A sensor chip's power: its board input (VDD_IN) when labelled so, else the sum of its channels."""
    channels = {}
    for path in folder.glob("power*_input"):
        channels[path.name.partition("_")[0]] = (read_number(path) or 0.0) / 1e6
    for path in folder.glob("curr*_input"):
        number = path.name[len("curr") : -len("_input")]
        volts = read_number(folder / f"in{number}_input")
        if volts is not None and not channels.get(f"power{number}"):
            name = read_text(folder / f"in{number}_label") or path.name
            channels[name] = volts * (read_number(path) or 0.0) / 1e6
    return channels.get("VDD_IN", sum(channels.values())) if channels else None


def rail_watts(text: str) -> float | None:
    """The sum over rails of volts times amperes, of ``vcgencmd pmic_read_adc``."""
    values = {(name, kind): float(number) for name, kind, number in RAIL.findall(text)}
    rails = [values[name, "A"] * values[name, "V"] for name, kind in values if kind == "A" and (name, "V") in values]
    return sum(rails) if rails else None
