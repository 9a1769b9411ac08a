"""How many images share a forward pass: even batches, halved where the memory does not hold one."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, TypeVar

import torch

from tinyforge.errors import MissingError

R = TypeVar("R")
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]  # ``map``, or one that works on several at once
OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "not enough memory",
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


def even_parts(count: int, most: int) -> list[range]:
    """[0, count) in as few runs of at most ``most`` as possible, their lengths equal to within one."""
    number = -(-count // most)
    ends = [count * i // number for i in range(number + 1)] if number else [0]
    return [range(start, stop) for start, stop in pairwise(ends)]


def in_parts(work: Callable[[range], R], count: int, most: int, each: Each = map) -> list[R]:
    """``work`` on even runs of [0, count), in order. A run that does not fit the memory is halved, again and again.

    Raises MissingError when a single item does not fit.
    """
    return [done for part in each(lambda part: retreat(work, part), even_parts(count, most)) for done in part]


def retreat(work: Callable[[range], R], part: range) -> list[R]:
    """[work(part)], or the results of its halves, quarters, ..., where the memory does not hold it."""
    try:
        return [work(part)]
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        if len(part) == 1:
            raise MissingError(
                "not even one image at a time fits the memory: use a smaller backbone, backbone.dtype='float16' "
                f"on a GPU, or backbone.device='cpu' ({str(fault).splitlines()[0] if str(fault) else fault!r})"
            ) from fault
    if torch.cuda.is_available():  # outside the handler: the fault no longer holds the tensors of the failed attempt
        torch.cuda.empty_cache()
    middle = len(part) // 2
    return [*retreat(work, part[:middle]), *retreat(work, part[middle:])]


def is_out_of_memory(fault: BaseException) -> bool:
    """CUDA's allocator raises torch.OutOfMemoryError; the CPU's, and CUDA's libraries, a RuntimeError that says so."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(mark in str(fault) for mark in OUT_OF_MEMORY)
