"""Where candidates are measured: on this machine, or on a board over ssh. The same protocol in both places."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tinyforge.device.machine import describe_machine
from tinyforge.errors import DeviceError
from tinyforge.loading import recipe_toml
from tinyforge.remote import Address, Wish, bench_board, bench_options, tidy_board
from tinyforge.stages.bench import golden_images, in_turns
from tinyforge.stages.budget.entrants import Entered


@dataclass(frozen=True)
class Measured:
    """reports: arm ('onnx-int8@4': variant, threads) -> report of ``device.bench``. fault: why there are none."""

    machine: Mapping[str, Any]
    reports: Mapping[str, Any]
    fault: str = ""


class Ground(Protocol):
    """name: for people, '' for this machine."""

    name: str

    def measure(self, one: Entered, threads: Sequence[int], min_runs: int) -> Measured: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Here:
    """This machine."""

    name: str = ""

    def measure(self, one: Entered, threads: Sequence[int], min_runs: int) -> Measured:
        """All models and numbers of threads of a net in turns, each in a process of its own."""
        models, golden = one.models.path / "models", golden_images(one.road)
        found = in_turns(one.road, models, one.legal(), one.spec, golden, threads=threads, min_runs=min_runs)
        return Measured(describe_machine(), found)

    def close(self) -> None:
        """Nothing is left behind."""


@dataclass
class Board:
    """A board over ssh. Its environment stays there from net to net; ``close`` removes all.

    how: python, wheels and any_board of ``remote.Wish``. config: of OpenSSH.
    """

    address: Address
    how: Mapping[str, Any]
    config: Path | None = None
    kept: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.address)

    def measure(self, one: Entered, threads: Sequence[int], min_runs: int) -> Measured:
        """As ``Here``, there. Raises DeviceError when the board cannot be reached or used."""
        wanted, kinds = one.road.recipe.bench, [variant.name for variant in one.legal()]
        options = bench_options(kinds, threads, wanted.seconds, min_runs, wanted.warmup)
        with tempfile.TemporaryDirectory() as folder:
            bundle = pack(one, Path(folder) / "bundle")
            wish = Wish(bundle, options=options, keep=True, tidy=True, **self.how)
            found = bench_board(self.address, wish, config=self.config, log=one.road.job.log)
        self.kept += found["kept"]
        for text in found["warnings"]:
            one.road.warn(f"{self.address}: {text}")
        if found["bench"] is None:
            return Measured({}, {}, f"the self-test fails there: {found['selftest']['faults'][0]['message']}")
        return Measured(found["bench"]["machine"], found["bench"]["variants"])

    def close(self) -> None:
        """What cannot be removed now, since the board is gone, the next race continues with."""
        if self.kept:
            with suppress(DeviceError):
                tidy_board(self.address, self.how.get("python"), self.kept, config=self.config)
            self.kept.clear()


def pack(one: Entered, folder: Path) -> Path:
    """A bundle of all legal models of a net, to be measured elsewhere."""
    from tinyforge.compress.bundle import Contents, write_bundle

    road, (first, *others) = one.road, [variant.name for variant in one.legal()]
    contents = Contents(
        name=road.recipe.name,
        target=road.job.target.name,
        classes=road.inputs.support.classes,
        spec=one.spec,
        threads=road.job.target.threads,
        chosen=first,
        also=others,
        models=one.models.path / "models",
        made=one.made,
        golden_images=golden_images(road),
        providers=road.job.target.providers,
        exact_int8=road.job.target.exact_int8,
        recipe_lock=recipe_toml(road.recipe),
        report_html="<!doctype html><title>a candidate under measurement</title>\n",
    )
    return write_bundle(folder, contents)
