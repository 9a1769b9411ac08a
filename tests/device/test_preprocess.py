import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyforge.device.preprocess import DecodeFault, decode, normalise, prepare, resize
from tinyforge.device.spec import FITS, RESIZE_RULES, InputSpec

from .conftest import encode

RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP"])
def test_lossless_formats_give_their_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encode(Image.fromarray(RGB), kind, **options)), RGB)


def test_reads_files(tmp_path):
    (tmp_path / "ä b.png").write_bytes(encode(Image.fromarray(RGB)))
    np.testing.assert_array_equal(decode(tmp_path / "ä b.png"), RGB)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_colour_modes(mode):
    image = Image.fromarray(RGB).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    np.testing.assert_array_equal(decode(encode(image, kind)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg():
    plain = Image.fromarray(np.full((16, 16, 3), (200, 30, 60), np.uint8))
    assert np.abs(decode(encode(plain.convert("CMYK"), "JPEG")).astype(int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(wide), kind)), as_rgb(np.rint(wide / 257)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GREY.astype(np.int32) * 257, GREY),
        (GREY.astype(np.int32) * (2**31 // 255), GREY),
        (GREY.astype(np.float32) / 255, GREY),
        (GREY.astype(np.float32), GREY),
        (GREY.astype(np.float32) * 257, GREY),
        (np.where(GREY > 0, GREY, np.nan).astype(np.float32), GREY),
    ],
)
def test_32_bit_grey_by_the_smallest_customary_range(values, expected):
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values), "TIFF")), as_rgb(expected))


def test_alpha_lies_over_white():
    alpha = np.full(GREY.shape, 128, np.uint8)
    alpha[:12] = 0
    found = decode(encode(Image.fromarray(np.dstack([RGB, alpha]))))
    assert (found[:12] == 255).all()
    assert np.abs(found[12:] - (RGB[12:] * (128 / 255) + 255 * (127 / 255))).max() <= 1


def test_grey_alpha_lies_over_white():
    image = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)])
    assert (decode(encode(image)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(kind):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    found = decode(encode(image, kind, transparency=0))
    assert tuple(found[0, 0]) == (255, 255, 255)
    assert tuple(found[1, 1]) == (10, 20, 30)


def test_transparent_16_bit_grey_is_white():
    wide = np.full((4, 4), 1000, np.uint16)
    wide[0, 0] = 7
    found = decode(encode(Image.fromarray(wide), transparency=7))
    assert found[0, 0, 0] == 255
    assert found[1, 1, 0] == 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (found == (255, 0, 0)).all()


STORED = {  # how a camera stores an upright picture: EXIF names the sides of row 0 and column 0
    1: lambda u: u,  # top, left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.T,  # left, top
    6: lambda u: u[:, ::-1].T,  # right, top
    7: lambda u: u[::-1, ::-1].T,  # right, bottom
    8: lambda u: u[::-1].T,  # left, bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(kind, orientation):
    upright = Image.new("L", (32, 48), 0)
    upright.paste(255, (0, 0, 16, 16))  # a white corner, upper left
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encode(Image.fromarray(STORED[orientation](np.asarray(upright)).copy()), kind, exif=exif))
    assert np.abs(found[..., 0].astype(int) - np.asarray(upright)).max() < 40


def test_broken_exif_is_ignored():
    found = decode(encode(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0garbage"))
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, not a picture", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (encode(Image.fromarray(RGB))[:200], "truncated"),
        (encode(Image.fromarray(RGB), "JPEG")[:-200], "truncated"),
        (encode(Image.fromarray(RGB))[:10], "not an image"),
    ],
)
def test_unusable_files_say_why(data, reason):
    with pytest.raises(DecodeFault, match=reason):
        decode(data)


def test_missing_file_says_so():
    with pytest.raises(DecodeFault, match="No such file"):
        decode(Path("no/such/file.png"))


def test_size_is_judged_from_the_header():
    bomb = bytearray(encode(Image.new("1", (8, 8))))
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2  # IHDR's width and height; the pixels are not there
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(DecodeFault, match=r"more than the (1000 pixels|178956970 pixels that Pillow opens)"):
        decode(bytes(bomb), max_pixels=1000)
    with pytest.raises(DecodeFault, match="36x24 is more than the 863 pixels"):
        decode(encode(Image.fromarray(RGB)), max_pixels=863)
    assert decode(encode(Image.fromarray(RGB)), max_pixels=864).shape == (24, 36, 3)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"]), data=st.data())
def test_damaged_files_decode_or_raise_decode_fault(kind, data):
    encoded = bytearray(encode(Image.fromarray(RGB), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = encoded[: data.draw(st.integers(0, len(encoded)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = decode(bytes(cut), max_pixels=10_000)
        except DecodeFault:
            return
    assert found.dtype == np.uint8
    assert found.shape[2] == 3


specs = st.builds(
    InputSpec,
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    resize=st.sampled_from(RESIZE_RULES),
    fit=st.sampled_from(FITS),
    crop_pct=st.sampled_from([0.5, 0.875, 1.0]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)


@settings(max_examples=100, deadline=None)
@given(spec=specs, height=st.integers(1, 40), width=st.integers(1, 40), value=st.integers(0, 255))
def test_prepare_keeps_shape_and_plain_colour(spec, height, width, value):
    x = prepare(np.full((height, width, 3), value, np.uint8), spec)
    h, w = spec.size
    assert x.shape == ((1, 3, h, w) if spec.layout == "NCHW" else (1, h, w, 3))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, (value / 255 - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("rule", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("shape", "crop_pct"), [((50, 70), 0.875), ((71, 33), 1.0), ((32, 32), 0.9), ((9, 20), 0.95)])
def test_crop_equals_torchvision(rule, shape, crop_pct):
    transforms = pytest.importorskip("torchvision.transforms.functional")
    modes = {mode.value: mode for mode in transforms.InterpolationMode}
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    between = transforms.resize(image, int(32 / crop_pct), modes[rule])
    expected = np.asarray(transforms.center_crop(between, 32))
    spec = InputSpec((32, 32), resize=rule, fit="crop", crop_pct=crop_pct)
    np.testing.assert_array_equal(resize(np.asarray(image), spec), expected)


def test_normalise_equals_torchvision_bit_for_bit():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.functional")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = functional.normalize(functional.to_tensor(RGB), mean, std)
    assert torch.equal(torch.from_numpy(normalise(RGB[None], InputSpec((24, 36), mean=mean, std=std)))[0], expected)


def test_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize(RGB, InputSpec((24, 36))), RGB)


def test_a_strip_too_long_to_crop_is_refused():
    with pytest.raises(DecodeFault, match="too long and narrow"):
        resize(np.zeros((1, 200_000, 3), np.uint8), InputSpec((224, 224), fit="crop"))


@pytest.mark.parametrize("pixels", [RGB.astype(np.float32), GREY, RGB[:0], np.dstack([RGB, GREY])])
def test_other_pixels_are_refused(pixels):
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        resize(pixels, InputSpec((8, 8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 8)}, "size"),
        ({"size": (8.5, 8)}, "size"),
        ({"size": (8, 99999)}, "size"),
        ({"resize": "area"}, "resize"),
        ({"fit": "pad"}, "fit"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": "all"}, "crop_pct"),
        ({"std": (1, 1, 0)}, "std"),
        ({"mean": (0, 0)}, "mean"),
        ({"mean": ("x", 0, 0)}, "mean"),
        ({"mean": (float("nan"), 0, 0)}, "mean"),
        ({"layout": "CHW"}, "layout"),
        ({"colour": "BGR"}, "unknown keys colour"),
    ],
)
def test_input_spec_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        InputSpec.from_json({**InputSpec((8, 8)).to_json(), **change})
