"""The record that reaches the board unchanged: how an image becomes the model's input."""

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

RESIZE_RULES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
FITS = ("stretch", "crop")
LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "uint8")
MAX_SIDE = 4096


@dataclass(frozen=True)
class InputSpec:
    """How decoded 8-bit RGB becomes a model's input.

    size: (height, width) in pixels. resize: a Pillow resampling rule. fit: 'stretch' resizes both sides to ``size``;
    'crop' resizes the shorter side to ``size / crop_pct`` and cuts the centre. mean, std: per channel, on [0, 1]
    pixels. layout: of the input tensor. dtype: 'uint8' is a model that normalises inside its graph: its input is the
    resized pixels themselves, NHWC.
    Raises ValueError on anything else.
    """

    size: tuple[int, int]
    resize: str = "bicubic"
    fit: str = "stretch"
    crop_pct: float = 1.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    layout: str = "NCHW"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        colours = _are_numbers(self.mean, 3) and _are_numbers(self.std, 3) and min(self.std) > 0
        crop = _are_numbers((self.crop_pct,), 1) and 0 < self.crop_pct <= 1
        problems = [
            text
            for good, text in (
                (_is_size(self.size), f"size must be two whole numbers from 1 to {MAX_SIDE}, not {self.size}"),
                (self.resize in RESIZE_RULES, f"resize must be one of {', '.join(RESIZE_RULES)}, not {self.resize!r}"),
                (self.fit in FITS, f"fit must be one of {', '.join(FITS)}, not {self.fit!r}"),
                (crop, f"crop_pct must be in (0, 1], not {self.crop_pct}"),
                (colours, "mean and std need three numbers each, std above 0"),
                (self.layout in LAYOUTS, f"layout must be one of {', '.join(LAYOUTS)}, not {self.layout!r}"),
                (self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}"),
                (self.dtype != "uint8" or self.layout == "NHWC", "dtype uint8 needs layout NHWC"),
            )
            if not good
        ]
        if problems:
            raise ValueError("InputSpec: " + "; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "InputSpec":
        unknown = sorted(set(record) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"InputSpec: unknown keys {', '.join(unknown)}")
        return cls(**record)


def _is_size(size: tuple) -> bool:
    return len(size) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in size)


def _are_numbers(values: tuple, count: int) -> bool:
    numbers = [value for value in values if isinstance(value, Real) and not isinstance(value, bool)]
    return len(numbers) == len(values) == count and all(map(math.isfinite, numbers))
