"""Trains the photo models on a machine with a GPU that is reached only through transfers of limited size.

    python benchmarks/photos_gpu.py pack --data tiny-imagenet-200/train --data cifar-100/train --out parts    # here
    python benchmarks/photos_gpu.py start --parts parts --out run --minutes 25                                # there
    python benchmarks/photos_gpu.py watch --out run --seconds 60                                              # there
    python benchmarks/photos_gpu.py split --out run --to pieces                                               # there
    python benchmarks/photos_gpu.py join --pieces pieces --to photos                                          # here

pack writes tar files of at most 60 MiB with 64 px WebP images, one folder per class, without the classes that
photos.tsv excludes; they may be carried one by one. start unpacks them and trains in a process of its own, which
outlives the shell that started it, writes run/log.txt, and goes on from its newest checkpoint when started again.
split cuts the exported weights into pieces of at most 16 MiB with their hashes; join checks them.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

PART_BYTES, PIECE_BYTES, QUALITY = 60 * 2**20, 16 * 2**20, 90


def pack(data: list[Path], out: Path) -> None:
    """Every image that may be trained on or measured on, small, in tar files below PART_BYTES."""
    out.mkdir(parents=True, exist_ok=True)
    entries: list[tuple[str, bytes]] = []
    written = number = 0
    for name, content in small_images(data):
        room = (len(content) + 511) // 512 * 512 + 512
        if written + room + 10240 > PART_BYTES:
            write_part(out / f"photos-{number:03d}.tar", entries)
            entries, written, number = [], 0, number + 1
        entries.append((name, content))
        written += room
    write_part(out / f"photos-{number:03d}.tar", entries)
    print(f"{number + 1} parts in {out}")


def write_part(file: Path, entries: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def small_images(data: list[Path]) -> Iterator[tuple[str, bytes]]:
    """('<folder>/<number>.webp', encoded image) of every class folder that photos.tsv does not exclude."""
    from PIL import Image

    from tinyforge.device.preprocess import decode, resize
    from tinyforge.device.spec import InputSpec
    from tinyforge.embedded.pretrain import photos

    spec, known, counts = InputSpec((photos.SIZE, photos.SIZE), resize="bicubic"), photos.known_folders(), {}
    for folder in sorted(folder for root in data for folder in root.iterdir() if folder.is_dir()):
        if folder.name in known and known[folder.name].role == "excluded":
            continue
        for file in photos.images_below(folder):
            number = counts[folder.name] = counts.get(folder.name, -1) + 1
            buffer = io.BytesIO()
            Image.fromarray(resize(decode(file), spec)).save(buffer, "WEBP", quality=QUALITY)
            yield f"{folder.name}/{number:05d}.webp", buffer.getvalue()


def start(parts: Path, out: Path, minutes: float, device: str) -> None:
    """Unpack what is not unpacked yet, and train in a session of its own."""
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for part in sorted(parts.glob("photos-*.tar")):
        done = out / f"{part.stem}.unpacked"
        if not done.exists():
            with tarfile.open(part) as archive:
                archive.extractall(images, filter="data")
            done.touch()
    command = [sys.executable, "-m", "tinyforge", "pretrain", "photos", "--data", str(images), "--out", str(out)]
    command += ["--device", device, "--minutes", str(minutes)]
    with (out / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    (out / "pid").write_text(str(process.pid))
    print(f"process {process.pid}, log {out / 'log.txt'}")


def watch(out: Path, seconds: float) -> None:
    """Wait, and print the end of the log; says so when the weights are there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (out / "classes.txt").exists():
        time.sleep(1)
    print("\n".join((out / "log.txt").read_text().splitlines()[-5:]))
    print("finished" if (out / "classes.txt").exists() else "under way")


def split(out: Path, to: Path) -> None:
    """One tar of the exported weights, in pieces, with pieces.json: sha256 of each and of the whole."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("backbone", "teacher", "classes.txt"):
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
    step = steps.add_parser("start")
    step.add_argument("--parts", type=Path, required=True)
    step.add_argument("--out", type=Path, required=True)
    step.add_argument("--minutes", type=float, default=25.0)
    step.add_argument("--device", default="cuda")
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
    {"pack": pack, "start": start, "watch": watch, "split": split, "join": join}[options.pop("step")](**options)


if __name__ == "__main__":
    main()
