"""What runs the UNet: eager PyTorch, torch.compile, which can pass gradients, too, or OpenVINO on a CPU.

All compute in the backbone's precision, so their results differ by rounding alone. 'auto' tries them here on as many
images as the backbone's plan has at once, without a gradient, takes the fastest, and remembers it: measuring costs
seconds to minutes.
Legend: B batch, C h w latent, L tokens, D width.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from tinyforge.cores import granted_cores
from tinyforge.device.machine import describe_machine
from tinyforge.errors import MissingError, RecipeError
from tinyforge.store import write_atomic

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""z (B, C, h, w), timesteps (B,), cond (B, L, D) -> the UNet's output (B, C, h, w)."""
ROUNDS = 3
MOST_PROGRAMS = 64  # of torch.compile: batches of 1, 2, 4, ... with and without a gradient
WORTH = 0.95
"""An engine that takes more than this share of eager's time is not worth another rounding."""


class Output(nn.Module):
    """The UNet as a function of tensors alone."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, steps: Tensor, cond: Tensor) -> Tensor:
        return self.unet(z, steps, encoder_hidden_states=cond, return_dict=False)[0]


def eager(unet: Any) -> Predict:
    return Output(unet)


def compiled(unet: Any) -> Predict:
    """torch.compile, on a GPU with CUDA graphs. Each number of images is compiled at its first call; so that they are
    few, the images are filled up to a power of two with copies of the last, whose results are dropped.
    """
    on_gpu = next(unet.parameters()).is_cuda
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_PROGRAMS)
    fast = torch.compile(Output(unet), dynamic=False, mode="reduce-overhead" if on_gpu else "default")

    def predict(z: Tensor, steps: Tensor, cond: Tensor) -> Tensor:
        count = len(z)
        rows = torch.arange(1 << (count - 1).bit_length(), device=z.device).clamp(max=count - 1)
        return fast(z[rows], steps[rows], cond[rows])[:count].clone()  # a graph writes over its last output

    return predict


def in_openvino(unet: Any) -> Predict:
    """OpenVINO in float32 on the CPU: as many passes at a time as torch's threads leave cores for; others wait."""
    import openvino as ov

    weight, config = next(unet.parameters()), unet.config
    if weight.dtype != torch.float32 or weight.is_cuda:
        raise ValueError("it computes in float32 on a CPU")
    z = torch.zeros(2, config.in_channels, config.sample_size, config.sample_size)
    example = z, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 8, config.cross_attention_dim)
    batch, tokens = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            Output(unet), example, dynamic_shapes=({0: batch}, {0: batch}, {0: batch, 1: tokens})
        )
    model = ov.convert_model(program)
    streams = max(1, granted_cores() // torch.get_num_threads())
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": granted_cores(), "NUM_STREAMS": streams}
    network, own = ov.Core().compile_model(model, "CPU", how), local()

    def predict(z: Tensor, steps: Tensor, cond: Tensor) -> Tensor:
        if not hasattr(own, "request"):
            own.request = network.create_infer_request()
        own.request.infer([x.detach().contiguous().numpy() for x in (z, steps.long(), cond)])
        return torch.from_numpy(own.request.get_output_tensor(0).data.copy())

    return predict


ENGINES: dict[str, Callable[[Any], Predict]] = {"eager": eager, "compiled": compiled, "openvino": in_openvino}


@dataclass(frozen=True, eq=False)
class Engine:
    """predict, descend: without and with a gradient; None where that is the UNet itself, in eager PyTorch.
    seconds: of a forward pass by each engine that was measured. failed: why another could not be.
    """

    name: str
    predict: Predict | None = None
    descend: Predict | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _engine(name: str, predict: Predict, *found: dict[str, Any]) -> Engine:
    return Engine(name, None if name == "eager" else predict, predict if name == "compiled" else None, *found)


def open_engine(name: str, unet: Any, batch_size: int, identity: str, memory: Path | None = None) -> Engine:
    """The engine ``name``, or for 'auto' the fastest on ``batch_size`` images; ``memory``: the file that remembers it
    for this machine and the model ``identity``. Raises MissingError for one that cannot work here, RecipeError for an
    unknown name.
    """
    if name == "auto":
        return _fastest(unet, batch_size, identity, memory)
    if name not in ENGINES:
        raise RecipeError(f"speed.engine '{name}' is none of {['auto', *ENGINES]}")
    try:
        return _engine(name, ENGINES[name](unet))
    except Exception as fault:  # the libraries' faults have no common base
        raise MissingError(f"speed.engine '{name}' does not work here: {_line(fault)}; use 'eager'") from fault


def _fastest(unet: Any, batch_size: int, identity: str, memory: Path | None) -> Engine:
    key = json.dumps([identity, batch_size, *_circumstances(unet)], sort_keys=True)
    known = json.loads(memory.read_text(encoding="utf-8")) if memory is not None and memory.is_file() else {}
    if key in known:
        record = known[key]
        return _engine(record["name"], ENGINES[record["name"]](unet), record["seconds"], record["failed"])
    made, failed = usable(unet, batch_size)
    seconds = measure(made, sample(unet, batch_size))
    name = quickest(seconds)
    if memory is not None:
        known[key] = {"name": name, "seconds": seconds, "failed": failed}
        write_atomic(memory, (json.dumps(known, indent=1) + "\n").encode())
    return _engine(name, made[name], seconds, failed)


def _circumstances(unet: Any) -> list[Any]:
    """What decides, besides the model, which engine is the fastest."""
    weight = next(unet.parameters())
    gpu = torch.cuda.get_device_name(weight.device) if weight.is_cuda else None
    return [str(weight.dtype), gpu, torch.get_num_threads(), torch.__version__, describe_machine()]


def usable(unet: Any, batch_size: int) -> tuple[dict[str, Predict], dict[str, str]]:
    """The engines that answer here, after their first pass, and why the others do not."""
    made: dict[str, Predict] = {}
    failed: dict[str, str] = {}
    for name, make in ENGINES.items():
        try:
            predict = make(unet)
            with torch.inference_mode():
                predict(*sample(unet, batch_size))
            made[name] = predict
        except Exception as fault:
            if name == "eager":
                raise
            failed[name] = _line(fault)
    return made, failed


def sample(unet: Any, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs of the UNet's shapes, with CLIP's 77 tokens."""
    weight, config = next(unet.parameters()), unet.config
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch_size, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    cond = torch.randn(batch_size, 77, config.cross_attention_dim, generator=generator)
    return z.to(weight), torch.full((batch_size,), 500, device=weight.device), cond.to(weight)


def measure(
    made: Mapping[str, Predict], inputs: tuple[Tensor, Tensor, Tensor], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of a forward pass, the least of ROUNDS in turns."""
    took: dict[str, list[float]] = {name: [] for name in made}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, predict in made.items():
                started = clock()
                predict(*inputs)
                if inputs[0].is_cuda:
                    torch.cuda.synchronize()
                took[name].append(clock() - started)
    return {name: min(times) for name, times in took.items()}


def quickest(seconds: Mapping[str, float]) -> str:
    """The least, but eager unless another is clearly faster."""
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < WORTH * seconds["eager"] else "eager"


def _line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]
