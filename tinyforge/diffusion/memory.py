"""How a backbone is held in the memory of a GPU: what fits, decided from its free bytes before it is loaded there.

Legend: B images in a forward pass, C h w latent.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from tinyforge.cores import MOST_HANDS, available_bytes, granted_cores

CPU_BATCH = 32  # more at once gained nothing: docs/speed.md
LARGEST_BATCH = 64
ENOUGH = 8  # images that keep a GPU busy: no saving that costs time is made beyond them
SHARE = 0.85  # of the free bytes: allocators waste some, and libraries want theirs
SD15_LATENT_VOLUME = 320 * 64**2 + 640 * 32**2 + 1280 * 16**2 + 1280 * 8**2
MIB = 2**20


@dataclass(frozen=True)
class Needs:
    """Bytes. unet, others (VAE and text encoder), visitor (the larger of these two): weights. The rest per image: a
    guided prediction; a prediction with its gradient, plain and checkpointed; a decoding by the VAE.
    """

    unet: int
    others: int
    visitor: int
    guided: int
    gradient: int
    checkpointed: int
    decoding: int


@dataclass(frozen=True)
class Plan:
    """batch_size: images in a forward pass. checkpoint_gradients: activations are computed again for the gradient.
    slice_vae: images pass the VAE one by one. offload: VAE and text encoder wait on the CPU. channels_last: how pixels
    lie in memory; a GPU's convolutions in half precision want it, a CPU's do not. None changes a result.
    """

    batch_size: int = CPU_BATCH
    checkpoint_gradients: bool = False
    slice_vae: bool = False
    offload: bool = False
    channels_last: bool = False


def needs(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> Needs:
    """Weights are counted. What an image takes is scaled from SD 1.5 by the volume of the latents' channels; SD 1.5's
    own, in float32 with fused attention: 260 MiB a guided prediction, 1,496 a prediction with its gradient and that of
    its prompt, 471 checkpointed, 768 a decoding to 512 px. Source: benchmarks/memory.py --image.
    """
    config = unet.config
    volume = sum(width * (config.sample_size / 2**i) ** 2 for i, width in enumerate(config.block_out_channels))
    scale = volume / SD15_LATENT_VOLUME * next(unet.parameters()).element_size() / 4
    own = (round(mib * MIB * scale) for mib in (260, 1496, 471, 768))
    others = weight_bytes(vae), weight_bytes(text_encoder)
    return Needs(weight_bytes(unet), sum(others), max(others), *own)


def weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def plan_memory(free_bytes: int, needs: Needs) -> Plan:
    """The first way of holding the backbone that takes ENOUGH images at once, else the one that takes most; where none
    takes one image, one image and every saving.

    Checkpointing costs a third forward pass in a gradient, offloading costs copies: in this order they are tried.
    """
    ways = [_plan(free_bytes, needs, *way) for way in product((False, True), repeat=2)]
    most = max(ways, key=lambda plan: plan.batch_size)
    if not most.batch_size:
        return replace(ways[-1], batch_size=1)
    return next((plan for plan in ways if plan.batch_size >= ENOUGH), most)


def _plan(free_bytes: int, needs: Needs, offload: bool, checkpoint: bool) -> Plan:
    """With a batch of 0 where not even one image fits."""
    room = int(free_bytes * SHARE) - needs.unet - (needs.visitor if offload else needs.others)
    image = max(needs.guided, needs.checkpointed if checkpoint else needs.gradient)
    batch_size = min(LARGEST_BATCH, max(0, room // image))
    return Plan(batch_size, checkpoint, max(1, batch_size) * needs.decoding > room, offload)


def plan_for(device: torch.device, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> Plan:
    """By the free memory of a GPU; elsewhere by that of the machine, which has the weights already."""
    own = needs(unet, vae, text_encoder)
    if device.type != "cuda":
        return plan_on_cpu(available_bytes(), own, min(granted_cores(), MOST_HANDS))
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return replace(plan_memory(free_bytes, own), channels_last=True)


def plan_on_cpu(free_bytes: int | None, needs: Needs, hands: int) -> Plan:
    """CPU_BATCH images, or as many as the memory holds when so many hands have a batch each at a time: a system that is
    out of it ends a program without a word.
    """
    if free_bytes is None:
        return Plan()
    fitting = int(free_bytes * SHARE) // hands // max(needs.guided, needs.gradient, needs.decoding)
    return Plan(min(CPU_BATCH, max(1, fitting)))


def settle(plan: Plan, device: torch.device, unet: Any, vae: Any, text_encoder: nn.Module) -> None:
    """Put the networks where the plan wants them, frozen, and switch on what it asks for."""
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False).eval()
        module.to("cpu" if plan.offload and module is not unet else device)
    if plan.channels_last:
        for module in (unet, vae):
            module.to(memory_format=torch.channels_last)
    if plan.checkpoint_gradients:
        unet.enable_gradient_checkpointing()
    if plan.slice_vae:
        vae.enable_slicing()


@contextmanager
def visiting(module: nn.Module, device: torch.device, leaves: bool) -> Iterator[None]:
    """``module`` on the device for a while; it goes back to the CPU afterwards if it ``leaves``."""
    module.to(device)
    try:
        yield
    finally:
        if leaves:
            module.to("cpu")
