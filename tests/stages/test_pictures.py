"""What of a user's photo travels in a bundle."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from tinyforge.device.preprocess import decode
from tinyforge.images import Item, read_images
from tinyforge.stages.pictures import TRAVELLING_PIXELS, bare_jpeg, travelling

SECRET = b"52.5200N 13.4050E"


def photo(height=40, width=56, mode="RGB") -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([rows * 6 % 256, columns * 4 % 256, (rows + columns) % 256], axis=2).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def camera_jpeg(image: Image.Image, orientation: int = 6, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=SECRET, **options)
    return buffer.getvalue() + b"film" + SECRET


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}])
def test_a_jpeg_stays_as_it_is_but_tells_nothing_of_its_author(mode, options):
    encoded = camera_jpeg(photo(mode=mode), **options)
    bare = bare_jpeg(encoded)
    np.testing.assert_array_equal(decode(bare), decode(encoded))
    assert decode(bare).shape == (56, 40, 3)  # turned upright
    assert SECRET in encoded
    assert SECRET not in bare
    assert bare.endswith(b"\xff\xd9")


def test_what_is_no_whole_jpeg_is_left_to_png():
    encoded = camera_jpeg(photo())
    assert bare_jpeg(encoded[: encoded.index(b"\xff\xda") + 40]) == b""


def test_files_of_a_folder_travel_as_they_are(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.jpg").write_bytes(camera_jpeg(photo(40 + len(name))))
        photo(mode="L").save(tmp_path / name / "two.png")
    jpeg, grey, *_ = read_images(tmp_path).items
    assert travelling(jpeg) == bare_jpeg((tmp_path / "a/one.jpg").read_bytes())
    np.testing.assert_array_equal(decode(travelling(grey)), grey.rgb)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_photo_is_scaled_down_in_its_own_format(tmp_path, kind):
    file = tmp_path / "large"
    photo(1500, 2000).save(file, kind)
    item = Item("large", 0, hashlib.sha256(file.read_bytes()).hexdigest(), None, file=file)
    with Image.open(io.BytesIO(travelling(item))) as image:
        assert image.format == kind
        assert image.size == (1632, 1224)
        assert image.size[0] * image.size[1] <= TRAVELLING_PIXELS


def test_without_a_file_pixels_travel_as_png():
    rgb = np.asarray(photo())
    np.testing.assert_array_equal(decode(travelling(Item("digits/0", 0, "", rgb))), rgb)
