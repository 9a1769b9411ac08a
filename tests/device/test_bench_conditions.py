"""The state of a machine, read from a made-up root."""

import os
import time
from pathlib import Path

import pytest

from tinyforge.device.conditions import busy_cores, firmware_bits, judge, read_conditions, summarise_conditions
from tinyforge.device.machine import usable_cores

CPUS = "sys/devices/system/cpu"
THERMAL = "sys/class/thermal"


def add(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def add_vcgencmd(root: Path, answer: str) -> None:
    add(root, {"usr/bin/vcgencmd": f"#!/bin/sh\n[ $1 = get_throttled ] && echo {answer}"})
    (root / "usr/bin/vcgencmd").chmod(0o755)


@pytest.fixture
def pi(tmp_path):
    """A Raspberry Pi with nothing to complain of."""
    add_vcgencmd(tmp_path, "throttled=0x0")
    return add(
        tmp_path,
        {
            f"{CPUS}/cpu0/cpufreq/scaling_governor": "performance",
            f"{CPUS}/cpu1/cpufreq/scaling_governor": "performance",
            f"{CPUS}/cpu0/cpufreq/scaling_cur_freq": "1500000",
            f"{THERMAL}/thermal_zone0/temp": "51121",
            f"{THERMAL}/cooling_device0/type": "cpufreq-cpu0",
            f"{THERMAL}/cooling_device0/cur_state": "0",
            f"{THERMAL}/cooling_device1/type": "pwm-fan",
            f"{THERMAL}/cooling_device1/cur_state": "3",
        },
    )


def test_everything_is_read(pi):
    assert read_conditions(pi) == {
        "load": None,
        "governors": ["performance"],
        "frequency_mhz": 1500,
        "temperature_c": 51.121,
        "firmware": 0,
        "throttle_events": None,
        "cooling": [],
    }
    assert judge([read_conditions(pi)] * 2) == {"valid": True, "reasons": [], "notes": []}


def test_a_machine_that_tells_nothing(tmp_path):
    found = read_conditions(tmp_path)
    assert not any(found.values())
    assert judge([found, found])["valid"]


def test_the_firmwares_file_comes_before_its_tool(pi):
    add(pi, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})
    assert firmware_bits(pi) == 0x50005


def test_a_tool_that_fails_is_no_tool(pi):
    add(pi, {"usr/bin/vcgencmd": "#!/bin/sh\necho throttled=0x4; exit 1"})
    assert firmware_bits(pi) is None


@pytest.mark.parametrize(
    ("bits", "words"),
    [(0x1, "under-voltage"), (0x2, "frequency capped"), (0x4, "throttled"), (0x8, "soft temperature limit")],
)
def test_one_sample_of_throttling_spoils_the_run(pi, bits, words):
    good = read_conditions(pi)
    add_vcgencmd(pi, f"throttled={bits:#x}")
    verdict = judge([good, read_conditions(pi), good])
    assert verdict["valid"] is False
    assert verdict["reasons"] == [words]


def test_what_came_and_went_between_samples_is_seen_and_what_was_before_is_a_note(pi):
    add_vcgencmd(pi, "throttled=0x10000")
    before = read_conditions(pi)
    assert judge([before, before]) == {
        "valid": True,
        "reasons": [],
        "notes": ["since power-up, before this measurement: under-voltage"],
    }
    add_vcgencmd(pi, "throttled=0x50000")
    assert judge([before, read_conditions(pi)])["reasons"] == ["throttled while measuring"]


def test_counters_and_cooling_devices_count_too(pi):
    add(pi, {f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": "7"})
    before = read_conditions(pi)
    add(pi, {f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": "8", f"{THERMAL}/cooling_device0/cur_state": "2"})
    reasons = judge([before, read_conditions(pi)])["reasons"]
    assert reasons == ["the kernel cools cpufreq-cpu0 at 2", "the processor throttled while measuring"]


def test_a_lazy_governor_is_a_note(pi):
    add(pi, {f"{CPUS}/cpu1/cpufreq/scaling_governor": "ondemand"})
    verdict = judge([read_conditions(pi)] * 2)
    assert verdict["valid"]
    assert "'performance' gives steadier" in verdict["notes"][0]


def test_other_work_is_a_note(pi):
    add(pi, {"proc/loadavg": "0.07 0.02 0.00 1/83 1042"})
    assert judge([read_conditions(pi)] * 2)["notes"] == []
    add(pi, {"proc/loadavg": "2.50 0.02 0.00 1/83 1042"})
    assert judge([read_conditions(pi)] * 2)["notes"] == ["other work is running here: load 2.5 before the measurement"]


def stat(busy: int, idle: int) -> dict[str, str]:
    """/proc/stat in which every core was so many ticks at work and idle."""
    cores = "".join(f"cpu{core} {busy} 0 0 {idle} 0 0 0 0 0 0\n" for core in range(os.cpu_count() or 1))
    return {"proc/stat": f"cpu  1 0 0 1 0 0 0 0 0 0\n{cores}intr 5\n"}


def test_others_work_counts_on_the_cores_of_this_process(pi, monkeypatch):
    assert busy_cores(pi) is None
    add(pi, stat(100, 100))
    assert busy_cores(pi, 0) is None, "no tick has passed"
    monkeypatch.setattr(time, "sleep", lambda _: add(pi, stat(115, 105)))
    assert busy_cores(pi) == pytest.approx(0.75 * usable_cores(), abs=0.06)


def test_what_this_process_did_before_is_no_other_work(pi):
    add(pi, {"proc/loadavg": "2.50 0.02 0.00 1/83 1042"})
    idle = {**read_conditions(pi), "busy_cores": 0.1}
    assert judge([idle, idle])["notes"] == []
    busy = {**idle, "busy_cores": 1.4}
    note = "other work is running here: load 2.5, 1.4 cores busy before the measurement"
    assert judge([busy, busy])["notes"] == [note]


def test_summary_spans_all_samples(pi):
    cool = read_conditions(pi)
    add(pi, {f"{THERMAL}/thermal_zone0/temp": "70000", f"{CPUS}/cpu0/cpufreq/scaling_cur_freq": "1400000"})
    found = summarise_conditions([cool, read_conditions(pi), cool])
    assert found["during"] == {"samples": 1, "frequency_mhz": [1400, 1500], "temperature_c": [51.121, 70.0]}
    assert found["before"] == found["after"] == cool
