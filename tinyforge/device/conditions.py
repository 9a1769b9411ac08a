"""The state a machine measures in: clock governor, temperature, throttling. Files of Linux under ``root``, which tests
replace; what a machine does not have is None or empty.

Throttling is read where boards tell of it: the Raspberry Pi's firmware (sysfs, else ``vcgencmd get_throttled``; bits
0-3 hold now, 16-19 since power-up), Intel's per-core counters, and the kernel's cooling devices for processors.
Source: Raspberry Pi documentation, computers/os, get_throttled; Linux documentation, admin-guide/thermal.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIRMWARE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
SINCE_POWER_UP = 16
BUSY_LOAD = 0.5
LOOK_SECONDS = 0.3
SLOW_GOVERNORS = ("powersave", "ondemand", "conservative", "schedutil")
ROOT = Path("/")


def read_conditions(root: Path = ROOT) -> dict[str, Any]:
    """{load, governors, frequency_mhz, temperature_c (hottest zone), firmware (bits), throttle_events, cooling}.

    load: processes that wanted to run, a mean over the last minute. throttle_events: sum of counters that only rise.
    cooling: cooling devices of processors that are holding back.
    """
    cpus = root / "sys/devices/system/cpu"
    governors = {text for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := read_text(path))}
    clocks = [value for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq") if (value := read_number(path))]
    thermal = root / "sys/class/thermal"
    degrees = [value for path in thermal.glob("thermal_zone*/temp") if (value := read_number(path))]
    events = [read_number(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    return {
        "load": float(load.split()[0]) if (load := read_text(root / "proc/loadavg")) else None,
        "governors": sorted(governors),
        "frequency_mhz": round(max(clocks) / 1000) if clocks else None,
        "temperature_c": max(degrees) / 1000 if degrees else None,
        "firmware": firmware_bits(root),
        "throttle_events": sum(value for value in events if value is not None) if events else None,
        "cooling": _cooling(thermal),
    }


def busy_cores(root: Path = ROOT, seconds: float = LOOK_SECONDS) -> float | None:
    """How many of the cores that this process may use are at work for others, looked at while it sleeps.

    The load, a mean over a minute, still holds what this process did itself.
    """
    before = _core_times(root)
    if not before:
        return None
    time.sleep(seconds)
    spans = [(busy - before[core][0], total - before[core][1]) for core, (busy, total) in _core_times(root).items()]
    shares = [busy / total for busy, total in spans if total > 0]
    return round(sum(shares), 1) if shares else None


def _core_times(root: Path) -> dict[str, tuple[int, int]]:
    """Core -> ticks (at work, in all) since it was started, of the cores that this process may use."""
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    times = {}
    for name, *fields in (line.split() for line in read_text(root / "proc/stat").splitlines() if line):
        if name in own and len(fields) >= 8:
            ticks = [int(field) for field in fields[:8]]  # user nice system idle iowait irq softirq steal
            times[name] = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
    return times


def firmware_bits(root: Path = ROOT) -> int | None:
    """The Raspberry Pi firmware's throttling bits."""
    for path in root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled"):
        if text := read_text(path):
            return int(text, 16)
    text = vcgencmd(root, "get_throttled")
    return int(text.partition("=")[2], 16) if text.startswith("throttled=") else None


def vcgencmd(root: Path, *words: str) -> str:
    """What the Raspberry Pi's tool says; '' where there is none."""
    program = root / "usr/bin/vcgencmd"
    if not program.is_file():
        return ""
    try:
        done = subprocess.run([str(program), *words], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cooling(thermal: Path) -> list[str]:
    kinds = {path.parent: read_text(path) for path in thermal.glob("cooling_device*/type")}
    return sorted(
        f"{kind} at {state:.0f}"
        for folder, kind in kinds.items()
        if "cpufreq" in kind and (state := read_number(folder / "cur_state"))
    )


def judge(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{valid, reasons: why not, notes}. ``samples``: before (``busy_cores`` too, if known), any during, after."""
    before, after = samples[0], samples[-1]
    reasons = sorted({reason for sample in samples for reason in _holding_back(sample)})
    news = (after["firmware"] or 0) & ~(before["firmware"] or 0)
    reasons += [f"{text} while measuring" for bit, text in FIRMWARE_BITS.items() if news >> SINCE_POWER_UP + bit & 1]
    if (after["throttle_events"] or 0) > (before["throttle_events"] or 0):
        reasons.append("the processor throttled while measuring")
    busy, load = before.get("busy_cores"), before["load"]
    slow = [name for name in before["governors"] if name in SLOW_GOVERNORS]
    told = [f"load {load}"] * (load is not None) + [f"{busy} cores busy"] * (busy is not None)
    at_work = (load if busy is None else busy) or 0
    notes = [f"other work is running here: {', '.join(told)} before the measurement"] if at_work > BUSY_LOAD else []
    notes += [f"clock governor {name}: 'performance' gives steadier latencies" for name in slow]
    earlier = [text for bit, text in FIRMWARE_BITS.items() if (before["firmware"] or 0) >> SINCE_POWER_UP + bit & 1]
    notes += [f"since power-up, before this measurement: {', '.join(earlier)}"] if earlier else []
    return {"valid": not reasons, "reasons": reasons, "notes": notes}


def _holding_back(sample: dict[str, Any]) -> list[str]:
    now = [text for bit, text in FIRMWARE_BITS.items() if (sample["firmware"] or 0) >> bit & 1]
    return now + [f"the kernel cools {text}" for text in sample["cooling"]]


def summarise_conditions(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{before, during: {samples, lowest and highest frequency and temperature}, after, valid, reasons, notes}."""
    during: dict[str, Any] = {"samples": max(0, len(samples) - 2)}
    for key in ("frequency_mhz", "temperature_c"):
        values = [sample[key] for sample in samples if sample[key] is not None]
        during[key] = [min(values), max(values)] if values else None
    return {"before": samples[0], "during": during, "after": samples[-1], **judge(samples)}


def read_text(path: Path) -> str:
    """One file's text, stripped; '' when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def read_number(path: Path) -> float | None:
    try:
        return float(read_text(path))
    except ValueError:
        return None
