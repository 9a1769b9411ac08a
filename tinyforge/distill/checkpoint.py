"""A training run in progress, and its one file on disk: complete or absent, and continued bit by bit."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tinyforge.recipe import Distill
from tinyforge.store import write_atomic

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Run:
    """Weights, the optimiser with its momenta, the weight average, and the history so far. Changed in place by every
    step.

    sums: of loss, correct and labelled images, over the epoch that is not finished. settled: batch norms keep the
    statistics that they have, and long gradients are shortened, as in a student with starting weights.
    """

    student: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    settled: bool = False


def start_run(student: nn.Module, settings: Distill, settled: bool = False) -> Run:
    """Nesterov SGD; weight decay reaches matrices and kernels only, not biases and batch norm."""
    kernels = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    nesterov = settings.momentum > 0
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
    return Run(student, optimizer, deepcopy(student.state_dict()), settled=settled)


def save_run(run: Run, folder: Path, identity: str) -> None:
    """One safetensors file: weights, average and momenta; the step and the history in its header."""
    tensors = {f"student.{name}": value for name, value in run.student.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.items()}
    for name, parameter in run.student.named_parameters():
        momentum = run.optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    header = {"identity": identity, "step": run.step, "history": run.history, "sums": run.sums}
    packed = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"run": json.dumps(header)})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CHECKPOINT, packed)


def restore_run(run: Run, folder: Path, identity: str) -> bool:
    """Continue ``run`` from the folder's checkpoint if it is of this very run; otherwise leave it fresh. True if
    continued.
    """
    if not (folder / CHECKPOINT).is_file():
        return False
    with safe_open(str(folder / CHECKPOINT), "pt") as file:
        header = json.loads(file.metadata()["run"])
        if header["identity"] != identity:
            return False
        parts: dict[str, dict[str, Tensor]] = {"student": {}, "average": {}, "momentum": {}}
        for key in file.keys():  # noqa: SIM118  (not a mapping)
            part, name = key.split(".", 1)
            parts[part][name] = file.get_tensor(key)
    run.student.load_state_dict(parts["student"])
    for name, value in parts["average"].items():
        run.average[name].copy_(value)
    for name, parameter in run.student.named_parameters():
        if name in parts["momentum"]:
            momentum = torch.empty_like(parameter.data).copy_(parts["momentum"][name])
            run.optimizer.state[parameter]["momentum_buffer"] = momentum
    run.step, run.history, run.sums = header["step"], header["history"], header["sums"]
    return True
