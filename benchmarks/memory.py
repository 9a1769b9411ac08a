"""Whether Stable Diffusion 1.5 at 512 px keeps within a GPU's memory: the plan for it, and the peaks by that plan.

    python benchmarks/memory.py --gib 8 12 24                    # a minute, on any machine
    python benchmarks/memory.py --gib 8 12 24 --device cuda      # on a GPU, which grants the process no more than that
    python benchmarks/memory.py --image                          # the figures that the plans are made from

Without a GPU no arithmetic is done: PyTorch's fake tensors have shapes alone, and what is summed up is the bytes of
all tensors that are alive at a time. Allocators and libraries take more: that is what a plan's reserve is for. On a GPU
it is what PyTorch's allocator held. A row has the largest peaks: a prediction with its gradient and the text encoder's,
which textual inversion needs, a guided prediction, and a decoding.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from measure import MIB, machine, peak_mib, reset_peak
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tinyforge.device.report import table
from tinyforge.diffusion.architectures import SD15
from tinyforge.diffusion.backbone import Backbone, random_backbone
from tinyforge.diffusion.memory import Plan, needs, plan_memory, weight_bytes
from tinyforge.diffusion.textual_inversion import Concept
from tinyforge.store import write_atomic

GIB = 2**30
PROMPT = "A photo of an object"


class Alive(TorchDispatchMode):
    """Sums the bytes of the tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for one in () if func.is_view else tree_iter(result):
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self.known | given:
                self.add(one.untyped_storage())
        return result

    def add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_of(run: Callable[[], Any], device: str, shapes_alone: bool = True) -> float:
    """The peak in MiB of what is run, without what was there before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated() / MIB
        reset_peak(device)
        run()
        return peak_mib(device) - before
    fake = FakeTensorMode(allow_non_fake_inputs=True) if shapes_alone else contextlib.nullcontext()
    with fake, Alive() as alive:
        run()
    return alive.peak / MIB


def peaks(backbone: Backbone, device: str) -> dict[str, float]:
    """Part -> MiB beside the weights, at the batch of the backbone's plan."""
    count = backbone.plan.batch_size
    z = torch.randn(count, *backbone.latent_shape, device=backbone.device)
    rows = backbone.word_vectors("object")[None].repeat(count, 1, 1)
    names = [f"<class-{index:03d}>" for index in range(count)]
    concept = Concept(tuple(names), tuple(names), rows)
    with torch.no_grad():
        cond = backbone.embed([PROMPT]).repeat(2 * count, 1, 1).float()

    def words() -> None:
        backbone.embed(
            [PROMPT.replace("object", name) for name in names], concept, rows.requires_grad_()
        ).sum().backward()

    def gradient() -> None:
        leaf = cond[:count].clone().requires_grad_()
        torch.autograd.grad(backbone.eps(z, 500, leaf).square().sum(), leaf)

    @torch.inference_mode()
    def guided() -> None:
        backbone.eps(torch.cat([z, z]), 500, cond)

    return {
        "text encoder": peak_of(words, device, shapes_alone=False),  # gathering tokens depends on which they are
        "gradient": peak_of(gradient, device),
        "guided": peak_of(guided, device),
        "decoding": peak_of(lambda: backbone.decode(z), device),
    }


def measured(gib: int, dtype: str, device: str) -> dict[str, Any]:
    """The plan for so much free memory, and its peaks in MiB, weights included where they are on the device."""
    plain = random_backbone(SD15, dtype=dtype, plan=Plan())
    plan = plan_memory(gib * GIB, needs(plain.unet, plain.vae, plain.text_encoder))
    plan = replace(plan, channels_last=device == "cuda")
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.mem_get_info()[1])
    backbone = random_backbone(SD15, dtype=dtype, plan=plan, device=device)
    unet, vae, words = (weight_bytes(one) / MIB for one in (backbone.unet, backbone.vae, backbone.text_encoder))
    own = peaks(backbone, device)
    resident = unet + (0 if plan.offload else vae + words)
    visits = plan.offload and device == "cpu"  # on a GPU the peak of a part has its visitor in it
    own = {
        "textual inversion": resident + visits * words + own["text encoder"] + own["gradient"],
        "null-text inversion": resident + own["gradient"],
        "generation": resident + own["guided"],
        "decoding": resident + visits * vae + own["decoding"],
    }
    return {"gib": gib, "dtype": dtype, "plan": asdict(plan), "peak_mib": own}


def per_image(dtype: str) -> dict[str, float]:
    """MiB that one image more takes: what ``tinyforge.diffusion.memory.needs`` scales to other models."""
    found: dict[str, float] = {}
    for checkpoint, name in ((False, "gradient"), (True, "checkpointed")):
        backbone = random_backbone(SD15, dtype=dtype, plan=Plan(checkpoint_gradients=checkpoint))
        more, less = (peaks(replace(backbone, plan=replace(backbone.plan, batch_size=n)), "cpu") for n in (3, 2))
        one = {part: more[part] - less[part] for part in more}
        found |= {name: one["gradient"] + one["text encoder"], "guided": one["guided"], "decoding": one["decoding"]}
    return found


def text(rows: list[dict[str, Any]]) -> str:
    head = ["GiB", "dtype", "images at once", "savings", *rows[0]["peak_mib"], "largest, share %"]
    lines = []
    for one in rows:
        savings = [name for name, value in one["plan"].items() if value is True]
        own, most = one["peak_mib"].values(), max(one["peak_mib"].values())
        found = [*(f"{value:.0f}" for value in own), f"{100 * most / (one['gib'] * 1024):.0f}"]
        lines.append([str(one["gib"]), one["dtype"], str(one["plan"]["batch_size"]), ", ".join(savings), *found])
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, nargs="+", default=[8, 12, 24])
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--image", action="store_true", help="only what one image more takes, on shapes alone")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    if options.image:
        print(
            table(
                ["an image more takes, in float32", "MiB"], [[k, f"{v:.0f}"] for k, v in per_image("float32").items()]
            )
        )
        return
    rows: list[dict[str, Any]] = []
    for dtype, gib in product(options.dtype, options.gib):
        rows.append(measured(gib, dtype, options.device))
        if options.out:
            result = {"machine": machine(options.device), "device": options.device, "rows": rows}
            write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(text(rows))


if __name__ == "__main__":
    main()
