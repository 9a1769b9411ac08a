"""One resumable training loop for every part: stateless randomness, EMA, atomic checkpoints.

All randomness of step t comes from a generator seeded with (seed, t), so a run continued from any checkpoint gives the
same weights, bit for bit, as one that was never stopped (same machine, same number of threads; a CPU: on a GPU the
libraries choose among convolutions by trying them).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .swap import mend, swap

log = logging.getLogger(__name__)

LossOf = Callable[[nn.Module, int, torch.Generator], Tensor]
"""(model, step, random numbers of the step) → scalar loss."""


FREE = ("steps", "save_every", "log_every")
"""What of a plan may change from one run to the next that continues it."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. steps: total; warmup: steps to full rate, then cosine to floor * lr.

    dtype: of the model's arithmetic, weights and averages stay float32; bfloat16 is about twice as fast where the
    processor has it. batch and learns_from, the images of a step and a fingerprint of the frozen network that it asks,
    change nothing here, but a checkpoint is not continued with others.
    """

    steps: int
    lr: float
    seed: int = 0
    warmup: int = 100
    floor: float = 0.02
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    dtype: str = "float32"
    save_every: int = 500
    log_every: int = 50
    batch: int = 0
    learns_from: str = ""


def rate(plan: Plan, step: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine."""
    progress = min(1.0, step / max(1, plan.steps))
    fall = plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return plan.lr * min(1.0, (step + 1) / plan.warmup) * fall


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 17) % (2**62))


def half_precision(device: str, dtype: str) -> torch.autocast:
    """Autocast to dtype; does nothing for float32."""
    return torch.autocast(device.partition(":")[0], getattr(torch, dtype), enabled=dtype != "float32")


def _averaged(state: dict[str, Tensor], new: dict[str, Tensor], decay: float) -> None:
    """EMA in place; counters and other integers are copied."""
    with torch.no_grad():
        numbers = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([state[name] for name in numbers], [new[name].detach() for name in numbers], 1 - decay)
        for name in state.keys() - set(numbers):
            state[name].copy_(new[name])


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """AdamW in two groups: matrices decay and vectors don't."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for param in model.parameters():
        groups.setdefault(param.ndim > 1, []).append(param)
    settings = [{"params": params, "weight_decay": plan.weight_decay * decays} for decays, params in groups.items()]
    return torch.optim.AdamW(settings, lr=plan.lr, betas=(0.9, 0.99))


def _flat_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    entries = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, entry in entries.items() for k, v in entry.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], record: dict[str, object]) -> None:
    """state.safetensors and state.json, replaced together: see ``swap``."""

    def write(place: Path) -> None:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, place / "state.safetensors")
        (place / "state.json").write_text(json.dumps(record))

    swap(folder, write)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]] | None:
    """The newest complete checkpoint, or None."""
    mend(folder)
    if not (folder / "state.json").is_file():
        return None
    return load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text())


def require_same(checkpoint: Path, model: nn.Module, plan: Plan, tensors: dict[str, Tensor], known: dict) -> None:
    """Raise ValueError unless a checkpoint is of this model and began with this plan; known: the plan in its record."""
    changed = [
        f"{name.replace('_', ' ')} {known[name]}, now {value}"
        for name, value in plan.__dict__.items()
        if name not in FREE and known.get(name, value) != value
    ]
    there = {name.removeprefix("model."): x.shape for name, x in tensors.items() if name.startswith("model.")}
    if there != {name: x.shape for name, x in model.state_dict().items()}:
        changed.append("a network of another size")
    if changed:
        raise ValueError(f"{checkpoint}: began with other settings ({'; '.join(changed)}); choose another --out")


def train(
    model: nn.Module,
    loss_of: LossOf,
    plan: Plan,
    checkpoint: Path,
    *,
    device: str = "cpu",
    name: str = "model",
) -> dict[str, Tensor]:
    """Run the plan and return the EMA weights.

    Raises ValueError for a checkpoint of another model or plan; only its numbers of steps may change.
    """
    torch.backends.cudnn.benchmark = True
    model.to(device).train()
    optimizer = _optimizer(model, plan)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    first = 0
    found = load_checkpoint(checkpoint)
    if found is not None:
        tensors, record = found
        require_same(checkpoint, model, plan, tensors, record["plan"])  # type: ignore[arg-type]
        first = int(record["step"])  # type: ignore[call-overload]
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        ema = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("ema.")}
        _restore_optimizer(optimizer, tensors)
    began, recent = time.monotonic(), []
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(plan, step)
        with half_precision(device, plan.dtype):
            loss = loss_of(model, step, generator(plan.seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        _averaged(ema, model.state_dict(), min(plan.ema, (1 + step) / (10 + step)))
        recent.append(loss.detach())
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            seconds = (time.monotonic() - began) / (done - first)
            log.info("%s step %d/%d loss %.4f %.3f s/step", name, done, plan.steps, torch.stack(recent).mean(), seconds)
            recent = []
        if done % plan.save_every == 0 or done == plan.steps:
            tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in ema.items()}
            save_checkpoint(checkpoint, tensors | _flat_optimizer(optimizer), {"step": done, "plan": plan.__dict__})
    return ema
