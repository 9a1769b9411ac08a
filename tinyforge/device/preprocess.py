"""From an image file to the model's input: the only implementation of preprocessing in the project.

Training, calibration, evaluation and the device all call these functions, so they cannot disagree.
Legend: B batch, H W pixels of the decoded image, h w of the model's input.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from .spec import InputSpec

FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "WEBP",
    "PPM",
    "JPEG2000",
    "AVIF",
    "TGA",
)  # none runs programs
ORIENTATION_TAG = 0x0112
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_RESIZED_PIXELS = 100_000_000
MAX_FILE_BYTES = 2**30  # of one encoded image


class DecodeFault(ValueError):
    """An image that cannot be used; the message is the reason, without the file's name."""


def decode(source: bytes | Path, max_pixels: int = 100_000_000) -> np.ndarray:
    """Encoded image -> uint8 (H, W, 3) RGB, upright, alpha laid over white, first frame of an animation.

    More than 8 bits per grey value are scaled to 8, not clipped. Colour profiles are ignored.
    Raises DecodeFault: empty, truncated, not an image, too many pixels (known from the header, before decoding).
    """
    data = read_file(source) if isinstance(source, (str, Path)) else bytes(source)
    if not data:
        raise DecodeFault("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes; both are judged here
        image = _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise DecodeFault(f"{width}x{height} is more than the {max_pixels} pixels allowed")
        try:
            image.load()
            return _to_rgb(_upright(image))
        except Exception as fault:  # decoders raise nearly anything on damaged data
            raise DecodeFault(_reason(fault)) from fault


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file. Raises DecodeFault for what cannot be read, may never end, or is far too large."""
    file = Path(path)
    try:
        reason = _unfit(file.stat())
        if not reason:
            return file.read_bytes()
    except (OSError, ValueError) as fault:  # ValueError: a name that no file can have
        reason = f"cannot be read: {getattr(fault, 'strerror', None) or fault}"
    raise DecodeFault(reason)


def _unfit(about: os.stat_result) -> str:
    """Why not to read it, or ''."""
    if stat.S_ISDIR(about.st_mode):
        return "is a folder; name the image files in it"
    if not stat.S_ISREG(about.st_mode):
        return "is not a regular file"
    return f"is larger than {MAX_FILE_BYTES} bytes" if about.st_size > MAX_FILE_BYTES else ""


def _open(data: bytes) -> Image.Image:
    """Header only."""
    Image.init()
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as fault:
        raise DecodeFault(f"more than the {2 * Image.MAX_IMAGE_PIXELS} pixels that Pillow opens") from fault
    except Exception as fault:
        if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
            raise DecodeFault("a HEIC photo; save it as JPEG or PNG") from fault
        raise DecodeFault("not an image, or its header is damaged") from fault


def _reason(fault: Exception) -> str:
    text = str(fault)
    return "truncated" if "truncated" in text.lower() else f"damaged image data: {text or type(fault).__name__}"


def _upright(image: Image.Image) -> Image.Image:
    """Turn by the EXIF orientation. Unreadable EXIF counts as none: the pixels are whole."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION_TAG))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey = _to_8_bit(np.asarray(image), image.info.get("transparency"))
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colour)
    return np.array(image.convert("RGB"))


def _to_8_bit(grey: np.ndarray, transparent: object = None) -> np.ndarray:
    """(H, W) of 16- or 32-bit integers or floats -> uint8, by the smallest customary range that holds all values."""
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    ranges = (1.0, 255.0, 65535.0) if grey.dtype.kind == "f" else (65535.0, 2.0**31 - 1)
    peak = values.max()
    scale = next((top for top in ranges if peak <= top), peak)
    result = np.clip(np.rint(values * (255.0 / scale)), 0, 255).astype(np.uint8)
    if isinstance(transparent, int):
        result[grey == transparent] = 255
    return result


def resize(rgb: np.ndarray, spec: InputSpec) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (h, w, 3) by Pillow's antialiased resampling, as ``spec`` says.

    'crop' equals torchvision's ``Resize(floor(size / crop_pct))`` and ``CenterCrop(size)``.
    Raises ValueError on other input, DecodeFault on an image too long and narrow to crop.
    """
    _check_pixels(rgb, 3)
    target_h, target_w = spec.size
    resample = getattr(Image.Resampling, spec.resize.upper())
    image = Image.fromarray(rgb)
    if spec.fit == "stretch":
        return np.array(image.resize((target_w, target_h), resample))
    between_h, between_w = _covering_size(rgb.shape[0], rgb.shape[1], spec)
    if between_h * between_w > MAX_RESIZED_PIXELS:
        raise DecodeFault(f"{rgb.shape[1]}x{rgb.shape[0]} is too long and narrow to be cropped")
    top, left = round((between_h - target_h) / 2), round((between_w - target_w) / 2)
    between = image.resize((between_w, between_h), resample)
    return np.array(between.crop((left, top, left + target_w, top + target_h)))


def _covering_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """(height, width) of the image's own proportions that just covers size / crop_pct."""
    need_h, need_w = int(spec.size[0] / spec.crop_pct), int(spec.size[1] / spec.crop_pct)
    if need_h * width >= need_w * height:
        return need_h, max(need_w, need_h * width // height)
    return max(need_h, need_w * height // width), need_w


def normalise(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """uint8 (B, h, w, 3) -> float32 (B, 3, h, w), or (B, h, w, 3) for layout NHWC: (x / 255 - mean) / std.

    The pixels themselves for dtype 'uint8'.
    """
    _check_pixels(pixels, 4)
    if spec.dtype == "uint8":
        return pixels
    values = pixels.astype(np.float32) / np.float32(255)
    values -= np.asarray(spec.mean, np.float32)
    values /= np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if spec.layout == "NCHW" else values


def prepare(rgb: np.ndarray, spec: InputSpec) -> np.ndarray:
    """uint8 (H, W, 3) -> the model's input of one image, with its batch axis."""
    return normalise(resize(rgb, spec)[None], spec)


def _check_pixels(pixels: np.ndarray, ndim: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != ndim or pixels.shape[-1] != 3 or 0 in pixels.shape:
        shape = "(H, W, 3)" if ndim == 3 else "(B, h, w, 3)"
        raise ValueError(f"expected uint8 pixels of shape {shape}, not {pixels.dtype} of {pixels.shape}")
