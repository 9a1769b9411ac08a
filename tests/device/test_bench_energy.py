import pytest

from tinyforge.device.energy import Rapl, Sensor, hwmon_watts, open_meter, rail_watts

from .test_bench_conditions import add

RAPL = "sys/class/powercap/intel-rapl:0"
ADC = """     3V7_WL_SW_A current(0)=0.10000000A
   VDD_CORE_A current(7)=2.00000000A
   EXT5V_V volt(24)=5.15000000V
     3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.90000000V"""


def test_rapl_counts_joules_and_survives_a_counter_that_wraps(tmp_path):
    add(tmp_path, {f"{RAPL}/energy_uj": "900000", f"{RAPL}/max_energy_range_uj": "1000000"})
    meter = open_meter(tmp_path)
    assert isinstance(meter, Rapl)
    assert meter.joules() == 0
    add(tmp_path, {f"{RAPL}/energy_uj": "950000"})
    assert meter.joules() == pytest.approx(0.05)
    add(tmp_path, {f"{RAPL}/energy_uj": "100000"})
    assert meter.joules() == pytest.approx(0.2)
    meter.close()


def test_the_platform_s_counter_is_not_added_to_the_packages_in_it(tmp_path):
    for zone, name in enumerate(["package-0", "psys"]):
        add(tmp_path, {f"{RAPL[:-1]}{zone}/name": name, f"{RAPL[:-1]}{zone}/energy_uj": "1"})
    meter = open_meter(tmp_path)
    for zone in range(2):
        add(tmp_path, {f"{RAPL[:-1]}{zone}/energy_uj": "1000001"})
    assert meter.joules() == pytest.approx(1.0)


def test_a_counter_that_may_not_be_read_is_none(tmp_path):
    (tmp_path / RAPL).mkdir(parents=True)
    assert open_meter(tmp_path) is None


def test_a_sensor_is_integrated_by_trapezia():
    times, watts = iter([0.0, 2.0, 3.0]), iter([1.0, 3.0, 3.0])
    meter = Sensor("test", lambda: next(watts), clock=lambda: next(times), period=3600.0)
    assert meter.joules() == 4.0
    assert meter.joules() == 7.0
    meter.close()


def test_power_channels_and_ina_voltage_times_current(tmp_path):
    board = tmp_path / "sys/class/hwmon/hwmon2"
    add(board, {"name": "ina3221", "in1_input": "5000", "curr1_input": "800", "in1_label": "VDD_IN"})
    add(board, {"in2_input": "1000", "curr2_input": "500", "in2_label": "VDD_CPU_GPU_CV"})
    assert hwmon_watts(board) == 4.0  # the board's input, which holds the other
    (board / "in1_label").unlink()
    assert hwmon_watts(board) == 4.5
    add(tmp_path / "sys/class/hwmon/hwmon1", {"name": "cpu_thermal", "temp1_input": "50000"})
    meter = open_meter(tmp_path)
    assert meter.source == "hwmon ina3221"
    meter.close()
    add(tmp_path / "x", {"power1_input": "2500000"})
    assert hwmon_watts(tmp_path / "x") == 2.5


def test_the_rails_of_a_raspberry_pi_5(tmp_path):
    assert rail_watts(ADC) == pytest.approx(0.37 + 1.8)
    assert rail_watts("") is None
    add(tmp_path, {"usr/bin/vcgencmd": f"#!/bin/sh\ncat <<'END'\n{ADC}\nEND"})
    (tmp_path / "usr/bin/vcgencmd").chmod(0o755)
    meter = open_meter(tmp_path)
    assert meter.source == "pmic rails"
    meter.close()
