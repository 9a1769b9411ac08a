"""What keeping freed memory (tinyforge/allocator.py) is worth: the same work in fresh processes, with and without it.

    python benchmarks/allocator.py --pairs 5 --out benchmarks/results/allocator.json

Two threads side by side, as a build works: a training step of a Conv4 of 64 images, the photo teacher's features of 32
images, and a step of the photo UNet. Per piece the ratios, kept to given back, of a pair of processes, which take
turns: of the median times, and of the processor seconds, the system's included; with their intervals over the pairs.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tinyforge.device.stats import mean_interval

REPEATS = 12


def pieces() -> dict[str, Callable[[], Callable[[], None]]]:
    """Name -> what prepares a piece of work and returns it."""
    import torch

    from tinyforge import embedded
    from tinyforge.diffusion.backbone import load_backbone
    from tinyforge.distill.students import build_student
    from tinyforge.embedded.network import load_teacher_network

    torch.set_num_threads(1)
    backbone = load_backbone(embedded.path("photos", "backbone"))

    def student(size: int) -> Callable[[], Callable[[], None]]:
        def prepare() -> Callable[[], None]:
            one = build_student("conv4", 10, input_size=size).to(memory_format=torch.channels_last).train()
            x = torch.rand(64, 3, size, size).contiguous(memory_format=torch.channels_last)

            def step() -> None:
                one.zero_grad(set_to_none=True)
                one(x).square().mean().backward()

            return step

        return prepare

    def teacher() -> Callable[[], None]:
        network, _ = load_teacher_network(embedded.path("photos", "teacher"))
        x = torch.rand(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        return lambda: network(x).sum().item()

    def denoiser() -> Callable[[], None]:
        z, t = torch.rand(30, *backbone.latent_shape), torch.full((30,), 500)
        tokens = backbone.embed(["a photo"] * 30).requires_grad_(True)
        return lambda: backbone.unet(z, t, encoder_hidden_states=tokens).sample.square().mean().backward()

    return {"Conv4, 32 px": student(32), "Conv4, 64 px": student(64), "teacher": lambda: teacher(), "UNet": denoiser}


def measured(kept: bool) -> dict[str, float]:
    """Seconds of each piece: the median of two threads, and the processor's; and the most memory in use, in MiB."""
    if kept:
        from tinyforge.allocator import keep_freed_memory

        keep_freed_memory()
    found = {}
    for name, prepare in pieces().items():

        def times(_: int, prepare: Callable[[], Callable[[], None]] = prepare) -> list[float]:
            work, taken = prepare(), []
            for _ in range(REPEATS):
                began = time.perf_counter()
                work()
                taken.append(time.perf_counter() - began)
            return taken[2:]

        before = processor_seconds()
        with ThreadPoolExecutor(2) as two:
            found[name] = float(np.median(np.concatenate(list(two.map(times, range(2))))))
        found[f"{name}, processor"] = processor_seconds() - before
    return found | {"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=["kept", "given back"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure == "kept")))
        return
    ways = ("given back", "kept")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for pair in range(options.pairs):
        for way in ways if pair % 2 else ways[::-1]:
            done = subprocess.run([sys.executable, __file__, "--measure", way], stdout=subprocess.PIPE, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    ratios = {}
    for name in found["kept"][0]:
        mean, low, high = mean_interval(
            [k[name] / g[name] for g, k in zip(found[ways[0]], found[ways[1]], strict=True)]
        )
        ratios[name] = {"ratio": mean, "low": low, "high": high}
        print(f"{name}: {mean:.2f} [{low:.2f}, {high:.2f}], {options.pairs} pairs")
    if options.out:
        options.out.write_text(json.dumps({"ratios": ratios, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
