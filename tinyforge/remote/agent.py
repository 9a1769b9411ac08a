"""Runs on the board: sent over stdin to its Python (3.9 or later, standard library only), does one job, answers, ends.

What was sent lies in one folder there, which is TinyForge's own, by content: ``blobs/<sha256>``, and
``<sha256>.partial`` while it arrives; ``tree-<key>`` (the bundle and what goes with it) and ``venv-<key>`` are made
beside their place as ``*.new`` and renamed, so that they are whole or absent. A job ends, with all that it started,
when stdin does: then the other side is gone.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ANSWER = "TINYFORGE-ANSWER "
LOCK_TRIES = 30
UNFINISHED = re.compile("(?:tree|venv)-[0-9a-f]{16}[.]new")


def main():
    stdin = sys.stdin.buffer
    job = json.loads(stdin.readline())
    threading.Thread(target=watch, args=(stdin,), daemon=True).start()
    folder = Path(job.pop("folder")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock:
            held = take(lock)
            answer = JOBS[job.pop("job")](folder, **job) if held else {"busy": True}
    except OSError as fault:
        answer = {"fault": f"{type(fault).__name__}: {fault}"}
    print(ANSWER + json.dumps(answer), flush=True)
    os._exit(0)


def take(lock):
    """Whether this process is now the only one at work here; a job whose other side is gone ends within seconds."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.1)
    return False


def watch(stdin):
    """End this process and its children when the other side is gone."""
    while stdin.read(4096):
        pass
    for child in list(CHILDREN):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os._exit(1)


CHILDREN = set()


def watched(argv, folder, **variables):
    """(code, stdout, stderr) of a command in a process group of its own."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(
            argv,
            cwd=str(folder),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1", **variables),
        )
        CHILDREN.add(child.pid)
        code = child.wait()
        CHILDREN.discard(child.pid)
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def inventory(folder, blobs):
    """Which of ``blobs`` (sha256 -> bytes) are still to be sent; what is there but damaged is removed."""
    home = folder / "blobs"
    home.mkdir(exist_ok=True)
    for path in list(folder.glob("*.new")):
        if UNFINISHED.fullmatch(path.name):
            shutil.rmtree(str(path))
    missing = []
    for name, size in blobs.items():
        whole, part = home / name, home / (name + ".partial")
        if whole.is_file() and sha256(whole) == name:
            continue
        if whole.exists():
            whole.unlink()
        if part.is_file() and part.stat().st_size == size and sha256(part) == name:
            part.rename(whole)
            continue
        if part.exists() and part.stat().st_size >= size:
            part.unlink()
        missing.append(name)
    sizes = {path.name[: -len(".partial")]: path.stat().st_size for path in home.glob("*.partial")}
    return {"missing": missing, "partial": sizes, "blobs": str(home)}


def sha256(path):
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def assemble(folder, name, files):
    """Put ``files`` (path -> sha256) together in a folder of that name. damaged: what did not arrive as it was sent."""
    home, place = folder / "blobs", folder / name
    wanted = set(files.values())
    damaged = sorted(blob for blob in wanted if not (home / blob).is_file() or sha256(home / blob) != blob)
    for blob in damaged:
        if (home / blob).exists():
            (home / blob).unlink()
    if damaged:
        return {"damaged": damaged}
    fresh = folder / (name + ".new")
    for path, blob in files.items():
        file = fresh / path
        if fresh not in file.parents or ".." in file.parts:
            return {"fault": f"{path} leaves the folder"}
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(home / blob), str(file))
    if place.exists():
        shutil.rmtree(str(place))
    fresh.rename(place)
    return {"damaged": [], "path": str(place)}


def environment(folder, name, tree, wheels):
    """A virtual environment of this Python with the bundle's requirements; wheels: from those that came along only."""
    place, fresh = folder / name, folder / (name + ".new")
    if not place.exists():
        code, _, err = watched([sys.executable, "-m", "venv", str(fresh)], folder)
        if code:
            return {"fault": last_line(err) or "python3 -m venv fails: is python3-venv installed?"}
        source = ["--no-index", "--find-links", str(folder / tree / "wheels")] if wheels else []
        pip = [
            str(fresh / "bin/python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ]
        code, _, err = watched([*pip, *source, "-r", str(folder / tree / "bundle/requirements.txt")], folder)
        if code:
            return {"fault": last_line(err)}
        fresh.rename(place)
    return {"python": str(place / "bin/python")}


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1]


def run(folder, name, argv):
    """A command in the bundle's folder."""
    code, out, err = watched(argv, folder / name / "bundle")
    return {"code": code, "stdout": out, "stderr": err}


def clean(folder, names):
    """Remove what was made there, and the folder itself when nothing else is in it."""
    for name in ["blobs", *names, *(name + ".new" for name in names)]:
        shutil.rmtree(str(folder / name), ignore_errors=True)
    left = sorted(path.name for path in folder.iterdir() if path.name != "lock")
    if not left:
        (folder / "lock").unlink()
        folder.rmdir()
    return {"left": left}


JOBS = {"inventory": inventory, "assemble": assemble, "environment": environment, "run": run, "clean": clean}

if __name__ == "__main__":
    main()
