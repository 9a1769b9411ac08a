"""The arithmetic of training: bfloat16 where the processor or the GPU is faster in it; weights stay float32."""

import torch
from torch import nn


def device_of(wanted: str) -> str:
    """'cpu' or 'cuda'; 'auto' is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def settled_dtype(dtype: str, device_type: str) -> str:
    """'float32' or 'bfloat16'; 'auto' is bfloat16 where the processor has it."""
    if dtype != "auto":
        return dtype
    cuda = device_type == "cuda" and torch.cuda.is_bf16_supported()
    cpu = device_type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return "bfloat16" if cuda or cpu else "float32"


def autocast(dtype: str, device_type: str) -> torch.autocast:
    """bfloat16 arithmetic if ``dtype`` says so. Weights stay float32."""
    return torch.autocast(device_type, torch.bfloat16, enabled=settled_dtype(dtype, device_type) == "bfloat16")


def gains(student: nn.Module, device_type: str) -> bool:
    """Whether bfloat16 is faster for this network: on a CPU it is not for grouped convolutions (depthwise ones train
    1.4 to 3 times as fast in float32).
    """
    return device_type != "cpu" or not any(one.groups > 1 for one in student.modules() if isinstance(one, nn.Conv2d))
