"""What a bundle asks of a board, from its target and its measurements."""

from dataclasses import replace

import pytest

from tinyforge.device.bundle import load_bundle
from tinyforge.device.runtime import CPU
from tinyforge.loading import load_target, shipped_targets
from tinyforge.remote import Wish
from tinyforge.remote.board import ENVIRONMENT_MIB, UNMEASURED_MIB, needs_of


@pytest.fixture
def pi_bundle(bundle):
    """The bundle of the tests, as if built for a Raspberry Pi 4."""
    return replace(load_bundle(bundle), target="raspi4", record={"latency": {}})


def test_the_targets_architecture_and_memory(pi_bundle):
    needs = needs_of(pi_bundle, Wish(pi_bundle.root), 0)
    assert (needs.architecture, needs.board_memory_mib, needs.title) == ("aarch64", 1024, "Raspberry Pi 4 Model B")
    assert needs_of(pi_bundle, Wish(pi_bundle.root, any_board=True), 0).architecture == "any"


def test_a_target_of_the_users_own_asks_for_nothing(pi_bundle):
    needs = needs_of(replace(pi_bundle, target="my-board"), Wish(pi_bundle.root), 0)
    assert (needs.architecture, needs.board_memory_mib, needs.title) == ("any", None, "my-board")


def test_memory_is_the_most_that_was_measured(pi_bundle):
    assert needs_of(pi_bundle, Wish(pi_bundle.root), 0).memory_mib == UNMEASURED_MIB
    latency = {"a": {"peak_rss_mib": 71.8}, "b": {"peak_rss_mib": 90.2}, "c": {"peak_rss_mib": None}}
    assert needs_of(replace(pi_bundle, record={"latency": latency}), Wish(pi_bundle.root), 0).memory_mib == 90


def test_disk_for_files_twice_and_an_environment(pi_bundle):
    assert needs_of(pi_bundle, Wish(pi_bundle.root), 100 * 2**20).disk_mib == 300 + ENVIRONMENT_MIB
    assert needs_of(pi_bundle, Wish(pi_bundle.root, python="python3"), 100 * 2**20).disk_mib == 301


@pytest.mark.parametrize("name", shipped_targets())
def test_where_a_provider_is_wanted_the_processor_comes_last(name):
    target = load_target(name)
    assert all(wanted[-1] == CPU[runtime] for runtime, wanted in target.providers.items())
    assert target.sources
    assert target.known
