"""A bundle on an emulated arm64 board over ssh, its answers compared with this machine's:

    sudo sh tests/device/emulated/build_root.sh ROOT
    sudo python tests/device/emulated/board.py ROOT BUNDLE --work keys/

prints JSON. Without --test, BUNDLE is of the sample task, and 30 of its test images of every class are answered.
Latencies in it are the emulator's: they say so, and nothing of a board. By default the packages unpacked in ROOT are
used; --environment makes one there from ROOT-wheels instead, which takes the emulator minutes.
"""

import argparse
import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tinyforge.device.accuracy import bench_accuracy
from tinyforge.device.bundle import load_bundle
from tinyforge.images import read_images
from tinyforge.remote import Address, Wish, bench_board
from tinyforge.splits import k_shot_split

SETTINGS = "etc/tinyforge-ssh"
QUICK = ("--seconds", "0", "--runs", "64", "--warmup", "4")
STARTING_SECONDS = 600.0
SHOTS, SEED, TESTS = 5, 0, 30  # of the sample task, as recipes have them


class EmulatedBoard:
    """The arm64 sshd of ``root`` on loopback, while open, with fresh keys in ``folder``.

    cpu: as qemu calls it; cortex-a72 is a Raspberry Pi 4's, cortex-a76 a Raspberry Pi 5's.
    """

    def __init__(self, root: Path, folder: Path, cpu: str = "cortex-a72") -> None:
        self._root, self._folder, self._cpu = root, folder, cpu
        self.config = folder / "config"

    def __enter__(self) -> "EmulatedBoard":
        settings = self._root / SETTINGS
        settings.mkdir(parents=True, exist_ok=True)
        for name in ("host", "client"):
            (self._folder / name).unlink(missing_ok=True)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / name], check=True)
        (settings / "host").write_bytes((self._folder / "host").read_bytes())
        (settings / "host").chmod(0o600)
        (settings / "authorized").write_bytes((self._folder / "client.pub").read_bytes())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = Address("127.0.0.1", "root", port)
        (settings / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\n"
            f"HostKey /{SETTINGS}/host\nAuthorizedKeysFile /{SETTINGS}/authorized\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin yes\nLoginGraceTime 0\nSubsystem sftp internal-sftp\n"
            f"SetEnv OMP_NUM_THREADS=1 QEMU_CPU={self._cpu}\n"
        )
        (self._folder / "known").write_text(f"[127.0.0.1]:{port} {(self._folder / 'host.pub').read_text()}")
        self.config.write_text(
            f"IdentityFile {self._folder}/client\nIdentitiesOnly yes\nUserKnownHostsFile {self._folder}/known\n"
        )
        self._start(port)
        return self

    def _start(self, port: int) -> None:
        root = shlex.quote(str(self._root.resolve()))
        script = (
            f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && "
            f"QEMU_CPU={self._cpu} exec chroot {root} /usr/sbin/sshd -D -e -f /{SETTINGS}/config"
        )  # no /sys: it would describe this machine's processor, and ONNX Runtime's detection crashes over that
        with (self._folder / "sshd.log").open("w") as log:
            self._process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stderr=log)
        start = time.monotonic()
        while not answers(port):
            if self._process.poll() is not None or time.monotonic() - start > STARTING_SECONDS:
                raise RuntimeError((self._folder / "sshd.log").read_text())
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as probe:
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False


def write_digits(folder: Path, per_class: int) -> Path:
    """folder/<digit>/<number>.png: the first test images of the sample task, of each class."""
    _, test = k_shot_split(read_images("digits"), SHOTS, SEED)
    for label, name in enumerate(test.classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, index in enumerate((test.labels == label).nonzero()[0][:per_class].tolist()):
            Image.fromarray(test.items[index].rgb).save(folder / name / f"{number}.png")
    return folder


def flips(here: dict[str, Any], there: dict[str, Any], classes: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    """Per variant the images with another answer there than here. Both as ``bench_accuracy`` gives."""
    found = {}
    for variant, one in there["predictions"].items():
        other = here["predictions"][variant]
        rows = zip(one["names"], one["labels"], other["predicted"], one["predicted"], strict=True)
        assert one["names"] == other["names"]
        found[variant] = [
            {"image": name, "label": classes[label], "here": classes[a], "there": classes[b]}
            for name, label, a, b in rows
            if a != b
        ]
    return found


def compare(board: EmulatedBoard, wish: Wish) -> dict[str, Any]:
    """{board, machine, selftest, n, accuracy: {variant: {here, there}}, flips, latency, emulated}."""
    bundle = load_bundle(wish.bundle)
    there = bench_board(board.address, wish, config=board.config, log=lambda line: print(line, file=sys.stderr))
    found = {"board": there["board"], "sent": there["sent"], "selftest": there["selftest"]}
    if there["bench"] is None:
        return found
    measured, machine = there["bench"]["accuracy"], there["bench"]["machine"]
    here = bench_accuracy(bundle, wish.test, list(measured["variants"]))
    pairs = {name: {"here": here["variants"][name], "there": one} for name, one in measured["variants"].items()}
    latency = {name: {"p50_ms": one["p50_ms"], "runs": one["runs"]} for name, one in there["bench"]["variants"].items()}
    return {
        **found,
        "machine": machine,
        "emulated": machine["emulated"],
        "n": len(next(iter(measured["predictions"].values()))["names"]),
        "accuracy": pairs,
        "flips": flips(here, measured, bundle.classes),
        "latency_of_the_emulator": latency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--test", type=Path, help="labelled images, FOLDER/<class>/* (default: of the sample task)")
    parser.add_argument("--environment", action="store_true", help="make a virtual environment there, from the wheels")
    parser.add_argument("--cpu", default="cortex-a72", help="as qemu calls it (default: a Raspberry Pi 4's)")
    parser.add_argument("--variant", default="all", help="model to measure (default: all)")
    parser.add_argument("--work", type=Path, required=True, help="a folder for keys and the log of sshd")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wheels = options.root.with_name(f"{options.root.name}-wheels")
    how = {"wheels": wheels} if options.environment else {"python": "/usr/bin/python3"}
    with EmulatedBoard(options.root, options.work, options.cpu) as board:
        words = ("--variant", options.variant, *QUICK)
        test = options.test or write_digits(options.work / "digits", TESTS)
        found = compare(board, Wish(options.bundle, options=words, test=test, **how))
    print(json.dumps({"cpu": options.cpu, **found}, indent=1))


if __name__ == "__main__":
    main()
