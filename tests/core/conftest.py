"""A bundle to look at, the one that the device tests build by hand."""

import shutil
from pathlib import Path

import pytest
from device.conftest import build_bundle, colour_picture, encode


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory) -> Path:
    """Read-only. Classes: the brightest of red, green, blue."""
    return build_bundle(tmp_path_factory.mktemp("bundle") / "colour-generic-cpu")


@pytest.fixture
def own_bundle(whole_bundle, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole_bundle, tmp_path / whole_bundle.name))


@pytest.fixture
def blue_picture(tmp_path) -> Path:
    path = tmp_path / "blue.png"
    path.write_bytes(encode(colour_picture(2, seed=5)))
    return path
