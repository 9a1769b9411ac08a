"""Random generators that depend on what is drawn, not on the order in which it is drawn."""

import hashlib

import torch


def item_generator(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator for one item, e.g. ``item_generator(recipe.seed, "noise", class_name, index)``.

    It is seeded by the SHA-256 of all arguments, so that any subset of the items, in any order, gets the same numbers,
    and it lives on the CPU, so that every device does.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
