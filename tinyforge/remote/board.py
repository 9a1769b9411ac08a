"""The whole way of a bundle on a board: look, push, make an environment, self-test, measure, bring back, clean up."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyforge.device.accuracy import labelled_images
from tinyforge.device.bundle import Bundle, load_bundle
from tinyforge.device.folder import file_sha256
from tinyforge.device.preprocess import DecodeFault, decode
from tinyforge.errors import DataError, DeviceError, MissingError, RecipeError, TinyForgeError, UsageError
from tinyforge.loading import load_target

from .address import Address
from .connection import Connection
from .facts import Needs, faults, parse_facts, probe, warnings

HOME = ".tinyforge"  # in the home directory, or in the folder of the address: nobody else's files are there
PYTHON = "python3"
# An environment with numpy, Pillow and a runtime takes 150 to 350 MiB, pip's downloads for it as much again.
ENVIRONMENT_MIB = 700
UNMEASURED_MIB = 200  # of memory, for a bundle without a measurement
ATTEMPTS = 2
Log = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What to do on every board.

    options: of ``python -m tinyforge_device bench``. variants: the models that these name. images, test: files and a
    labelled folder of this machine to take along. wheels: a folder of wheels, instead of an index. python: one there
    that has the packages already. keep: leave everything there, for the next run; tidy: but not after a failure.
    any_board: also where the architecture is not the target's.
    """

    bundle: Path
    options: Sequence[str] = ()
    variants: Sequence[str] = ()
    images: Sequence[Path] = ()
    test: Path | None = None
    wheels: Path | None = None
    python: str | None = None
    keep: bool = False
    tidy: bool = False
    any_board: bool = False


def bench_options(
    variants: Sequence[str], threads: Sequence[int] | None, seconds: float, runs: int, warmup: int
) -> list[str]:
    """The options of ``python -m tinyforge_device bench``."""
    words = [word for name in variants for word in ("--variant", name)]
    words += ["--threads", ",".join(map(str, threads))] if threads else []
    return [*words, "--seconds", str(seconds), "--runs", str(runs), "--warmup", str(warmup)]


def bench_boards(
    addresses: Sequence[Address], wish: Wish, *, config: Path | None = None, log: Log = lambda line: None
) -> list[dict[str, Any]]:
    """``bench_board`` on all of them at once; one that fails gives {address, error: {type, message, exit_code}}.

    An interrupt hangs up on all of them, which ends the work there.
    """
    boards = [(one.user, one.host, one.port) for one in addresses]
    twice = [str(one) for one, board in zip(addresses, boards, strict=True) if boards.count(board) > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice: two measurements on one board would disturb each other")
    if config and not config.is_file():
        raise UsageError(f"{config}: there is no such OpenSSH configuration")
    check_wish(wish)
    connections = [Connection(address, config) for address in addresses]

    def one(connection: Connection) -> dict[str, Any]:
        address = connection.address
        try:
            return bench_over(connection, wish, lambda line: log(f"{address}: {line}"))
        except TinyForgeError as error:
            told = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
            return {"address": str(address), "error": told}

    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        try:
            return list(pool.map(one, connections))
        except BaseException:
            for connection in connections:
                connection.hang_up()
            raise


def check_wish(wish: Wish) -> None:
    """Raise UsageError, DataError or BundleFault for what no board could measure, before any is asked."""
    bundle = load_bundle(wish.bundle)
    cargo(bundle, wish)
    for name in wish.variants:
        bundle.variant(name)
    for image in wish.images:
        try:
            decode(image)
        except DecodeFault as fault:
            raise DataError(f"{image}: {fault}") from fault
    if wish.test:
        labelled_images(wish.test, bundle.classes)


def bench_board(
    address: Address, wish: Wish, *, config: Path | None = None, log: Log = lambda line: None
) -> dict[str, Any]:
    """{address, board: Facts, warnings, sent: {files, bytes, there_before}, selftest, bench, kept: names of folders}.

    bench is None when the self-test fails. Raises DeviceError when the board cannot be reached or used. Nothing is left
    there, unless the connection is lost: then what was sent stays, and the next call continues.
    """
    return bench_over(Connection(address, config), wish, log)


def bench_over(connection: Connection, wish: Wish, log: Log) -> dict[str, Any]:
    """``bench_board``, over a connection that is opened and closed here."""
    address, bundle = connection.address, load_bundle(wish.bundle)
    files = cargo(bundle, wish)
    blobs = {path: file_sha256(local) for path, local in files.items()}
    folder, python = place(address), wish.python or PYTHON
    needs = needs_of(bundle, wish, sum(path.stat().st_size for path in files.values()))
    with connection:
        facts = parse_facts(connection.shell(probe(folder, python)))
        if facts is None:
            raise DeviceError(f"{address}: its shell does not run scripts; a board with a POSIX shell is needed")
        unfit = faults(facts, needs, folder, python)
        if unfit:
            raise DeviceError("\n".join(f"{address}: {text}" for text in unfit))
        there = _There(connection, python, folder)
        names = [tree := f"tree-{key(blobs)}"]
        if not wish.python:
            names.append(f"venv-{key([_requirements(blobs), facts.to_json()['python']])}")
        with _cleaned(there, names, wish):
            sent = there.push(files, blobs, log)
            there.do("assemble", name=tree, files=blobs)
            if not wish.python:
                log("making the environment")
                python = there.environment(names[-1], tree, bool(wish.wheels))
            measured = _measure(there, tree, python, wish, files, log)
    return {
        "address": str(address), "board": facts.to_json(), "warnings": warnings(facts, needs), "sent": sent,
        **measured, "kept": names if wish.keep else [],
    }  # fmt: skip


def place(address: Address) -> str:
    """The folder there that is TinyForge's own."""
    return f"{address.folder or '~'}/{HOME}"


@contextmanager
def _cleaned(there: "_There", names: Sequence[str], wish: Wish) -> Iterator[None]:
    """Leave nothing of these there that is not to be kept, after a failure either; not where the connection is lost, to
    be continued.
    """
    try:
        yield
    except TinyForgeError:
        if (wish.tidy or not wish.keep) and there.entered and there.is_open:
            with suppress(TinyForgeError):
                there.do("clean", names=names)
        raise
    if not wish.keep:
        there.do("clean", names=names)


def tidy_board(address: Address, python: str | None, kept: Sequence[str], *, config: Path | None = None) -> None:
    """Remove what several ``bench_board`` with ``keep`` left there: ``kept`` of their results. python: see ``Wish``."""
    with Connection(address, config) as connection:
        there = _There(connection, python or PYTHON, place(address))
        there.do("clean", names=list(dict.fromkeys(kept)))


def _measure(
    there: "_There", tree: str, python: str, wish: Wish, files: dict[str, Path], log: Log
) -> dict[str, dict[str, Any] | None]:
    log("self-test")
    selftest = there.run(tree, [python, "-m", "tinyforge_device", "selftest", ".", "--json"])
    if not selftest["ok"]:
        return {"selftest": selftest, "bench": None}
    options = [*wish.options, *(["--test", "../test"] if wish.test else [])]
    images = [f"../{path}" for path in files if path.startswith("images/")]
    log("measuring")
    words = ["bench", ".", "--json", *options, *(["--images", *images] if images else [])]
    return {"selftest": selftest, "bench": there.run(tree, [python, "-m", "tinyforge_device", *words])}


class _There:
    """The agent's jobs in one folder of one board. entered: one was done, so no other measurement runs there."""

    def __init__(self, connection: Connection, python: str, folder: str) -> None:
        self._connection, self._python, self._folder = connection, python, folder
        self.entered = False

    @property
    def is_open(self) -> bool:
        return self._connection.is_open

    def do(self, job: str, **details: Any) -> dict[str, Any]:
        """Raises DeviceError when it could not be done."""
        answer = self._connection.agent(self._python, {"job": job, "folder": self._folder, **details})
        if answer.get("busy"):
            raise DeviceError(f"{self._connection.address}: another measurement is running there; wait for its end")
        self.entered = True
        if "fault" in answer:
            raise DeviceError(f"{self._connection.address}: {answer['fault']}")
        return answer

    def push(self, files: dict[str, Path], blobs: dict[str, str], log: Log) -> dict[str, int]:
        """Send what is not there yet. {files, bytes, there_before: files}."""
        local = {blob: files[path] for path, blob in blobs.items()}
        sizes = {blob: path.stat().st_size for blob, path in local.items()}
        first: list[str] | None = None
        for _ in range(ATTEMPTS):
            found = self.do("inventory", blobs=sizes)
            missing = found["missing"]
            first = missing if first is None else first
            if not missing:
                break
            log(f"sending {len(missing)} files, {sum(sizes[blob] for blob in missing) / 2**20:.1f} MiB")
            with tempfile.TemporaryDirectory(prefix="tf-") as stage:
                for blob in missing:
                    (Path(stage) / blob).symlink_to(local[blob].resolve())
                self._connection.send(Path(stage), found["blobs"], missing, found["partial"])
        else:
            if self.do("inventory", blobs=sizes)["missing"]:
                raise DeviceError(
                    f"{self._connection.address}: files do not arrive as they were sent; is its disk well?"
                )
        return {
            "files": len(first),
            "bytes": sum(sizes[blob] for blob in first),
            "there_before": len(sizes) - len(first),
        }

    def environment(self, name: str, tree: str, offline: bool) -> str:
        """The path of the Python of an environment with the bundle's requirements."""
        answer = self.do("environment", name=name, tree=tree, wheels=offline)
        return answer["python"]

    def run(self, tree: str, argv: list[str]) -> dict[str, Any]:
        """The JSON that a command of the device package prints; exit code 1 is an answer too, 2 and 3 are as here."""
        answer = self.do("run", name=tree, argv=argv)
        if answer["code"] in (0, 1):
            with suppress(ValueError):
                return json.loads(answer["stdout"])
        last = (answer["stderr"].strip().splitlines() or ["no message"])[-1]
        raise {2: UsageError, 3: MissingError}.get(answer["code"], DeviceError)(
            f"{self._connection.address}: '{' '.join(argv[3:5])}' ended there with code {answer['code']}: {last}"
        )


def cargo(bundle: Bundle, wish: Wish) -> dict[str, Path]:
    """Path there -> file here: the bundle, test images, images to measure on, wheels. Raises UsageError."""
    files = {f"bundle/{path}": local for path, local in _below(bundle.root).items()}
    if wish.test:
        files |= {f"test/{path}": local for path, local in _folder(wish.test, "--test").items()}
    if wish.wheels:
        wheels = {
            path: local for path, local in _folder(wish.wheels, "--offline-wheels").items() if path.endswith(".whl")
        }
        if not wheels:
            raise UsageError(f"{wish.wheels}: holds no wheels; pip download -d {wish.wheels} -r requirements.txt ...")
        files |= {f"wheels/{local.name}": local for local in wheels.values()}
    for number, image in enumerate(wish.images):
        if not image.is_file():
            raise UsageError(f"{image}: there is no such image")
        files[f"images/{number}{image.suffix}"] = image
    return files


def _folder(folder: Path, option: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: is not a folder")
    return _below(folder)


def _below(root: Path) -> dict[str, Path]:
    """Files below a folder, hidden ones and byte code aside."""
    found = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def needs_of(bundle: Bundle, wish: Wish, cargo_bytes: int) -> Needs:
    """What the bundle's target says, as far as it ships with TinyForge, and what was measured where it was built."""
    try:
        target = load_target(bundle.target)
    except RecipeError:
        target = None
    measured = [one.get("peak_rss_mib") or 0 for one in bundle.record["latency"].values()]
    memory_mib = max(measured, default=0) or UNMEASURED_MIB
    return Needs(
        architecture="any" if wish.any_board or not target else target.architecture,
        disk_mib=3 * cargo_bytes // 2**20 + (1 if wish.python else ENVIRONMENT_MIB),
        memory_mib=round(memory_mib),
        board_memory_mib=target.memory_mib if target else None,
        title=target.title if target else bundle.target,
        own_python=bool(wish.python),
    )


def key(value: Any) -> str:
    """A short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _requirements(blobs: dict[str, str]) -> dict[str, str]:
    """What the environment is made from."""
    return {
        path: blob for path, blob in blobs.items() if path == "bundle/requirements.txt" or path.startswith("wheels/")
    }
