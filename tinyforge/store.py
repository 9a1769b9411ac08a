"""Content-addressed stage folders that survive ``kill -9``: what is there is complete, what is missing is made again.

::

    <root>/<stage>-<key16>.partial/   being made; every file in it is complete
    <root>/<stage>-<key16>/           done: it has a manifest, written last, before the rename
    <root>/.locks/<stage>-<key16>     held with flock by the process that makes it; vanishes with the process
    <root>/.locks/in-use              held by every process that reads stages: together, or alone to make them again

A manifest holds no times and no paths of this machine: the same inputs give the same bytes.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tinyforge.errors import UsageError

MANIFEST = "manifest.json"
_SCRATCH = ".scratch"


def stage_key(stage: str, version: int, settings: Mapping[str, Any], inputs: Sequence[str] = ()) -> str:
    """sha256 hex of everything a stage's result depends on.

    settings: the recipe section it reads and hashes of the files that it names, as JSON values.
    inputs: keys of the stages before it.
    """
    record = {"stage": stage, "version": version, "settings": settings, "inputs": list(inputs)}
    return hashlib.sha256(_canonical(record)).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full disk does not say where: what is raised inside names ``path`` if it names nothing."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``path`` so that it is either complete and on the disk, or absent (or as it was before)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{_SCRATCH}-", dir=path.parent)
    temporary = Path(name)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def verify(folder: Path) -> list[str]:
    """What is wrong with a done folder: manifest, missing, changed and extra files. Empty when it is whole."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST}: missing or damaged"]
    listed = {record["path"]: record for record in manifest["files"]}
    present = set(_files(folder))
    return [
        *(f"{name}: missing" for name in sorted(listed.keys() - present)),
        *(f"{name}: not in the manifest" for name in sorted(present - listed.keys())),
        *(f"{name}: changed" for name in sorted(listed.keys() & present) if _record(folder, name) != listed[name]),
    ]


@dataclass(frozen=True)
class Partial:
    """A stage folder being made, held by this process. Write through it, and every file is complete or absent."""

    path: Path
    stage: str
    key: str
    describe: Mapping[str, Any]

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def write(self, name: str, data: bytes) -> Path:
        write_atomic(self.path / name, data)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        return self.write(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")

    def remove(self, name: str) -> None:
        """A file or folder that the finished stage does not need, such as checkpoints. Nothing when it is not there."""
        if (self.path / name).exists():
            _remove(self.path / name)


class Store:
    """The folder ``root`` of all stage folders. Raises UsageError when it cannot be written."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def folder(self, stage: str, key: str) -> Path:
        """Where the done folder is, or would be."""
        return self.root / f"{stage}-{key[:16]}"

    def find(self, stage: str, key: str) -> Path | None:
        """The done folder, its files checked against the manifest; None when there is none or it is damaged."""
        folder = self.folder(stage, key)
        manifest = _read_manifest(folder)
        return folder if manifest and manifest["key"] == key and not verify(folder) else None

    def state(self, stage: str, key: str) -> str:
        """'done', 'damaged', 'partial' or 'missing'."""
        folder = self.folder(stage, key)
        if folder.exists():
            return "done" if self.find(stage, key) else "damaged"
        return "partial" if _partial(folder).exists() else "missing"

    def build(
        self,
        stage: str,
        key: str,
        describe: Mapping[str, Any],
        work: Callable[[Partial], None],
        *,
        overwrite: bool = False,
        resume: bool = True,
    ) -> tuple[Path, bool]:
        """(done folder, whether it was there already). ``work`` fills what is missing of a partial folder.

        overwrite: make it again although it is done. resume=False: throw a partial folder away first.
        Raises UsageError when another process is making the same folder.
        """
        done = None if overwrite else self.find(stage, key)
        if done:
            return done, True
        with self._locked(self.folder(stage, key).name):
            done = None if overwrite else self.find(stage, key)  # another process may just have left the lock
            if done:
                return done, True
            partial = self._take(stage, key, describe, fresh=overwrite or not resume)
            work(partial)
            return self._commit(partial), False

    @contextmanager
    def in_use(self, *, alone: bool) -> Iterator[None]:
        """For as long as stage folders are read. alone: they may be made again, so nobody else may use them.

        Raises UsageError when the other processes and this one cannot both have their way.
        """
        with self._lock("in-use") as lock:
            try:
                fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                why = "in use by another process" if alone else "being made anew by another process (--overwrite)"
                raise UsageError(f"{self.root} is {why}; wait for it, or choose another --out") from error
            yield

    def _take(self, stage: str, key: str, describe: Mapping[str, Any], *, fresh: bool) -> Partial:
        """The partial folder, continued or new (fresh: emptied). A done one becomes partial, without damaged files."""
        folder = self.folder(stage, key)
        partial = _partial(folder)
        if fresh or not _is_folder(folder):  # a file in its place
            _remove(folder)
        if fresh or not _is_folder(partial):
            _remove(partial)
        if folder.exists():
            _remove(partial)
            _drop_damaged(folder)
            folder.rename(partial)
        partial.mkdir(exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)
        for leftover in sorted(partial.rglob(f"{_SCRATCH}-*")):
            _remove(leftover)
        return Partial(partial, stage, key, describe)

    def _commit(self, partial: Partial) -> Path:
        """Write the manifest, then rename: from here on the folder is done."""
        files = [_record(partial.path, name) for name in _files(partial.path)]
        partial.write_json(
            MANIFEST,
            {
                "schema_version": 1,
                "stage": partial.stage,
                "key": partial.key,
                "describe": partial.describe,
                "files": files,
            },
        )
        _sync(partial.path)
        done = self.folder(partial.stage, partial.key)
        partial.path.rename(done)
        _sync(self.root)
        return done

    def _lock(self, name: str) -> IO[str]:
        locks = self.root / ".locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            return (locks / name).open("a+")
        except OSError as error:
            raise UsageError(f"{self.root}: cannot be written ({error.strerror}); choose another --out") from error

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._lock(name) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise UsageError(
                    f"{self.root / name} is being made by another process ({lock.read().strip() or 'just started'}); "
                    "wait for it, or choose another --out"
                ) from error
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            yield


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _files(folder: Path) -> list[str]:
    """Relative posix paths of all files, sorted, without the manifest."""
    return sorted(
        name
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != MANIFEST
    )


def _record(folder: Path, name: str) -> dict[str, Any]:
    return {"path": name, "sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        named = all(isinstance(record["path"], str) for record in manifest["files"])
        return manifest if named and isinstance(manifest["key"], str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _drop_damaged(folder: Path) -> None:
    """Leave only files that are as the manifest says; none without a manifest."""
    manifest = _read_manifest(folder)
    listed = {record["path"]: record for record in manifest["files"]} if manifest else {}
    for name in _files(folder):
        if _record(folder, name) != listed.get(name):
            (folder / name).unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    doomed = path.with_name(f"{_SCRATCH}-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if _is_folder(path):
        path.rename(doomed)  # at once gone under its name, however long the rest takes
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
