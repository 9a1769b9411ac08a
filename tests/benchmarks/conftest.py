"""The benchmarks are scripts beside the package; the tests load them from their files."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Name -> the module of that benchmark, which finds its neighbours as it does when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # gone after the test: "build" is also a package of others
        spec.loader.exec_module(module)
        return module

    return load
