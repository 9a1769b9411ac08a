"""What the benchmarks measure with: time, floating-point operations, peak memory, and the ceiling of the machine."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinyforge.device.machine import describe_machine

MIB = 2**20


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Took:
    """wall: seconds. processor: seconds of all threads of this process, which other processes hardly change."""

    wall: float
    processor: float


def took(run: Callable[[], Any], device: str = "cpu") -> Took:
    """How long one call takes, the device's queue drained before and after."""
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    run()
    synchronise(device)
    return Took(time.perf_counter() - wall, time.process_time() - processor)


def cost(one: Took, device: str) -> float:
    """The seconds by which rates are compared: on a GPU those of the wall, on a CPU those of the processor."""
    return one.wall if device.startswith("cuda") else one.processor


def spread(values: list[float]) -> dict[str, Any]:
    """{'median', 'low', 'high', 'runs'}: the range, since a few runs on a shared machine have no normal error."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


class WholeProgram:
    """A module tracker for torch's counter that tracks no module: all counts are those of the whole.

    The tracker that torch comes with hooks itself into modules in a way that ``torch.autograd.grad`` refuses.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *fault: object) -> None: ...


def count_flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of one call: matmuls, convolutions and attention, forward and backward.

    A multiplication and an addition are two; what is elementwise is not counted. Attention is counted as its two
    matmuls: the counter does not know every fused kernel, and which of them runs depends on the processor.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = WholeProgram()
    with counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops())


def reset_peak(device: str) -> None:
    """Start a new peak. Linux resets its high-water mark of resident memory on a '5' in clear_refs (man proc)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # the peak is then that since the process began
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> float | None:
    """Peak since ``reset_peak``: of allocated GPU memory, else of the process's resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MIB
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def best_rate(run: Callable[[], Any], flops: float, device: str, seconds: float = 0.4, least: int = 3) -> float:
    """FLOP/s of the best of at least ``least`` calls within about ``seconds``: a ceiling is a best case."""
    run()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        times.append(cost(took(run, device), device))
    return flops / min(times)


def ceilings(device: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> dict[str, float]:
    """FLOP/s that this machine reaches now, in processor seconds on a CPU: {'matmul', 'convolution'}.

    The convolution is 3x3 on activations ``shape`` (B, C, h, w), those of a network's first block. The matmul is
    large enough to be bound by arithmetic.
    """
    n = 8192 if device.startswith("cuda") else 1536
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    x = torch.randn(shape, generator=generator, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(shape[1], shape[1], 3, 3, generator=generator, device=device).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        matmul = best_rate(lambda: a @ b, 2.0 * n**3, device)
        flops = 2.0 * x.numel() * shape[1] * 9
        convolution = best_rate(lambda: torch.nn.functional.conv2d(x, weight, padding=1), flops, device)
    return {"matmul": matmul, "convolution": convolution}


def machine(device: str) -> dict[str, Any]:
    """The machine in words that name no path: processor, cores, threads, versions, and the GPU where it is used."""
    known = {
        **describe_machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        known |= {"gpu": torch.cuda.get_device_name(), "gpu_mib": torch.cuda.mem_get_info()[1] / MIB}
    return known
