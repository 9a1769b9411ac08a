r"""Trains the photo models on a machine with a GPU that is reached only through transfers of limited size.

    # here:
    python benchmarks/photos_gpu.py pack --data tiny-imagenet-200/train --data cifar-100/train --data cifar-100/test \
        --out parts
    # there:
    python benchmarks/photos_gpu.py start --parts parts --out run --minutes 25
    python benchmarks/photos_gpu.py watch --out run --seconds 60
    python benchmarks/photos_gpu.py split --out run --to pieces
    # here:
    python benchmarks/photos_gpu.py join --pieces pieces --to photos

pack writes compressed tar files below 24 MiB with WebP images of at most 64 px, one folder per class, without the
classes that photos.tsv excludes; they may be carried one by one. start unpacks them and trains in a process of its
own, which outlives the shell that started it, writes run/log.txt, and goes on from its newest checkpoint when started
again; train does the same and waits. --student timm:lcnet_050 64 16 also trains that student's starting weights, at
64 px for 16 epochs. watch says whether it is under way, finished, or stopped before its end.
split cuts the exported weights into pieces of at most 16 MiB with their hashes; join checks them.
"""

import argparse
import fcntl
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

PART_BYTES, PIECE_BYTES = 24 * 2**20, 16 * 2**20
QUALITY, SMALL_QUALITY = 80, 92
"""Of images that have the full size, and of smaller ones, which are enlarged for training and weigh little."""

FINISHED = "finished"
MARGIN = 0.75
"""Of the minutes: optimiser, averages and the first steps of each shape are not in the steps that are timed."""


def pack(data: list[Path], out: Path) -> None:
    """Every image that may be trained on or measured on, small, in tar files below PART_BYTES."""
    out.mkdir(parents=True, exist_ok=True)
    entries: list[tuple[str, bytes]] = []
    written = number = 0
    for name, content in filter(None, small_images(data)):
        room = (len(content) + 511) // 512 * 512 + 512
        if written + room + 10240 > PART_BYTES:
            write_part(out / f"photos-{number:03d}.tar.gz", entries)
            entries, written, number = [], 0, number + 1
        entries.append((name, content))
        written += room
    write_part(out / f"photos-{number:03d}.tar.gz", entries)
    print(f"{number + 1} parts in {out}")


def write_part(file: Path, entries: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def small_images(data: list[Path]) -> Iterator[tuple[str, bytes] | None]:
    """('<folder>/<number>.webp', encoded image) of every class folder that photos.tsv does not exclude, None where a
    file is no image.
    """
    from tinyforge.embedded.pretrain import photos

    known, counts, jobs = photos.known_folders(), {}, []
    for folder in sorted(folder for root in data for folder in root.iterdir() if folder.is_dir()):
        if folder.name in known and known[folder.name].role == "excluded":
            continue
        for file in photos.images_below(folder):
            number = counts[folder.name] = counts.get(folder.name, -1) + 1
            jobs.append((f"{folder.name}/{number:05d}.webp", file))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        yield from workers.map(small_image, jobs, chunksize=200)


def small_image(job: tuple[str, Path]) -> tuple[str, bytes] | None:
    """(name, file) → (name, WebP of at most photos.SIZE px a side): smaller images keep their size."""
    from PIL import Image

    from tinyforge.device.preprocess import DecodeFault, decode, resize
    from tinyforge.device.spec import InputSpec
    from tinyforge.embedded.pretrain import photos

    try:
        pixels, buffer = decode(job[1]), io.BytesIO()
    except DecodeFault:
        return None
    if max(pixels.shape[:2]) > photos.SIZE:
        pixels = resize(pixels, InputSpec((photos.SIZE, photos.SIZE), resize="bicubic"))
    quality = SMALL_QUALITY if max(pixels.shape[:2]) < photos.SIZE else QUALITY
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    return job[0], buffer.getvalue()


def start(
    parts: Path, out: Path, minutes: float, device: str, students: list[tuple[str, str, str]]
) -> subprocess.Popen[bytes]:
    """Run train in a session of its own, which outlives the caller's shell."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "train", "--parts", str(parts), "--out", str(out), "--device", device]
    command += ["--minutes", str(minutes), *(word for one in students for word in ("--student", *one))]
    with (out / "log.txt").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the processes that write to it hold it until they end
        except BlockingIOError:
            sys.exit(f"{out}: a training is under way there")
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    print(f"process {process.pid}, log {out / 'log.txt'}")
    return process


def train(parts: Path, out: Path, minutes: float, device: str, students: list[tuple[str, str, str]]) -> None:
    """Unpack what is not unpacked yet; then students (name, size, epochs) beside teacher, autoencoder and UNet, each of
    which is given its share of the time that is left.

    Side by side they use all of an H200, which waits for the launches of one; each is then slower: a student of 64 px
    made 140 steps a second alone, 50 beside the UNet, 30 beside the autoencoder and two students more.
    """
    if len({name for name, _, _ in students}) < len(students):
        sys.exit("--student: each student's weights have one place, and so one size")
    from tinyforge.embedded.pretrain import PARTS, design_for, photos

    began, images, pool = time.monotonic(), out / "images", out / "work" / "pool"
    images.mkdir(parents=True, exist_ok=True)
    (out / FINISHED).unlink(missing_ok=True)
    for part in sorted(parts.glob("photos-*.tar.gz")):
        done = out / f"{part.name}.unpacked"
        if not done.exists():
            with tarfile.open(part) as archive:
                archive.extractall(images, filter="data")
            done.touch()
    photos.ensure_pool([images], pool)

    def pretrain(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tinyforge", "pretrain", "photos", "--out", str(out), "--device", device]
        return subprocess.Popen([*command, *words])

    def left() -> float:
        return minutes - (time.monotonic() - began) / 60

    apprentices = [pretrain("--student", name, "--size", size, "--epochs", n) for name, size, n in students]
    shares = design_for("photos", device).minutes
    for number, part in enumerate(PARTS):
        share = shares[part] / sum(shares[one] for one in PARTS[number:])
        if pretrain("--part", part, "--minutes", f"{max(0.1, share * MARGIN * left()):.3f}").wait():
            stop(apprentices, f"{part}: was not trained")
    try:
        ends = [process.wait(timeout=max(0, 60 * left())) for process in apprentices]
    except subprocess.TimeoutExpired:
        stop(apprentices, "time is up before a student's starting weights were: start again to go on")
    if any(ends):
        sys.exit("a student's starting weights were not trained")
    (out / FINISHED).touch()


def stop(processes: list[subprocess.Popen[bytes]], why: str) -> NoReturn:
    for process in processes:
        process.terminate()
    sys.exit(why)


def watch(out: Path, seconds: float) -> None:
    """Wait for the end, print that of the log, and say what was seen."""
    until = time.monotonic() + seconds
    while (going := under_way(out)) and time.monotonic() < until:
        time.sleep(1)
    print("\n".join((out / "log.txt").read_text().splitlines()[-5:]))
    stopped = "finished" if (out / FINISHED).exists() else "stopped before its end: start again to go on"
    print("under way" if going else stopped)


def under_way(out: Path) -> bool:
    """Whether a process that start began, or one of its own, still runs."""
    with (out / "log.txt").open() as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def split(out: Path, to: Path) -> None:
    """One tar of the exported weights, in pieces, with pieces.json: sha256 of each and of the whole."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("backbone", "teacher", "classes.txt", *(["students"] if (out / "students").is_dir() else [])):
            archive.add(out / name, arcname=name)
    whole = buffer.getvalue()
    to.mkdir(parents=True, exist_ok=True)
    pieces = {}
    for number, first in enumerate(range(0, len(whole), PIECE_BYTES)):
        piece = whole[first : first + PIECE_BYTES]
        (to / f"weights.{number:03d}").write_bytes(piece)
        pieces[f"weights.{number:03d}"] = hashlib.sha256(piece).hexdigest()
    (to / "pieces.json").write_text(json.dumps({"pieces": pieces, "whole": hashlib.sha256(whole).hexdigest()}))
    print(f"{len(pieces)} pieces in {to}")


def join(pieces: Path, to: Path) -> None:
    """Put the pieces together and unpack them; stops when one is missing or changed."""
    record = json.loads((pieces / "pieces.json").read_text())
    whole = b""
    for name, expected in record["pieces"].items():
        file = pieces / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            sys.exit(f"{file} is missing or changed: transfer it again")
        whole += file.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        archive.extractall(to, filter="data")
    print(f"weights in {to}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("pack")
    step.add_argument("--data", type=Path, action="append", required=True)
    step.add_argument("--out", type=Path, required=True)
    for name in ("start", "train"):
        step = steps.add_parser(name)
        step.add_argument("--parts", type=Path, required=True)
        step.add_argument("--out", type=Path, required=True)
        step.add_argument("--minutes", type=float, default=25.0)
        step.add_argument("--device", default="cuda")
        words = {"nargs": 3, "metavar": ("NAME", "SIZE", "EPOCHS")}
        step.add_argument("--student", dest="students", action="append", default=[], **words)
    step = steps.add_parser("watch")
    step.add_argument("--out", type=Path, required=True)
    step.add_argument("--seconds", type=float, default=60.0)
    step = steps.add_parser("split")
    step.add_argument("--out", type=Path, required=True)
    step.add_argument("--to", type=Path, required=True)
    step = steps.add_parser("join")
    step.add_argument("--pieces", type=Path, required=True)
    step.add_argument("--to", type=Path, required=True)
    options = vars(parser.parse_args())
    {"pack": pack, "start": start, "train": train, "watch": watch, "split": split, "join": join}[options.pop("step")](
        **options
    )


if __name__ == "__main__":
    main()
