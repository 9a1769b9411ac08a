"""What a machine offers, from texts that differ between machines."""

import pytest

from tinyforge.doctor import as_text, cpu_limit, examine, memory_limit_mib, requirements, satisfies


@pytest.mark.parametrize(
    ("version", "spec", "expected"),
    [
        ("2.6.0", ">=2.6", True),
        ("2.6.0+cpu", ">=2.6", True),
        ("2.10", ">=2.9", True),
        ("2.5.1", ">=2.6", False),
        ("0.4.5", ">=0.4.5", True),
        ("3.0rc1", ">=2.15", True),
        ("1.0", "", True),
        ("2", ">=2.0.0", True),
    ],
)
def test_versions(version, spec, expected):
    assert satisfies(version, spec) is expected


@pytest.mark.parametrize(
    ("text", "expected"), [("200000 100000", 2.0), ("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_cpu_limit(text, expected):
    assert cpu_limit(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("2147483648", 2048), ("max", None), ("9223372036854771712", None), ("", None)]
)
def test_memory_limit(text, expected):
    assert memory_limit_mib(text) == expected


def test_requirements_name_base_and_extras():
    found = {name: (spec, extra) for name, spec, extra in requirements()}
    assert found["click"] == (">=8.1", "base")
    assert found["torch"][1] == "host"
    assert found["ray"][1] == "ray"


def test_the_text_names_every_package():
    report = examine()
    text = as_text(report)
    for dependency in report["dependencies"]:
        assert dependency["name"] in text
    assert {"torch", "cpu_limit", "gpus"} - report.keys() == {"torch"}
