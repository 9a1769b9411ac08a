"""Answers for image files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .folder import BundleFault
from .preprocess import DecodeFault, decode, prepare
from .runtime import Session, open_session


def open_bundle(bundle: Bundle, variant: str | None = None) -> Session:
    """A session of the named variant, by default the chosen one."""
    model = bundle.variant(variant)
    path, exact = bundle.model_path(model), model.exact_int8
    return open_session(path, model.runtime, bundle.threads, model.providers, exact_int8=exact)


def predict(bundle: Bundle, session: Session, paths: Iterable[str | Path], top: int = 1) -> list[dict[str, Any]]:
    """Per image {image, answers: [{class, probability}], best first, at most ``top``}, or {image, error}.

    Raises BundleFault when the model does not have the bundle's number of classes.
    """
    results = []
    for path in paths:
        try:
            logits = session.run(prepare(decode(Path(path)), bundle.spec))[0]
        except DecodeFault as fault:
            results.append({"image": str(path), "error": str(fault)})
            continue
        if len(logits) != len(bundle.classes):
            raise BundleFault(f"the model tells {len(logits)} classes apart, bundle.json names {len(bundle.classes)}")
        answers = [{"class": bundle.classes[i], "probability": round(p, 6)} for i, p in best_classes(logits, top)]
        results.append({"image": str(path), "answers": answers})
    return results


def best_classes(logits: np.ndarray, top: int) -> list[tuple[int, float]]:
    """(N,) -> (class index, probability) of the ``top`` likeliest, best first."""
    shares = softmax(logits)
    return [(int(i), float(shares[i])) for i in np.argsort(-shares, kind="stable")[:top]]


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., N) -> probabilities."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
