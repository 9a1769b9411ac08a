import numpy as np

from tinyforge.compress.calibration import Prepared
from tinyforge.device.preprocess import prepare


def test_images_are_prepared_one_by_one_and_again(digits, spec):
    decoded = []

    class Lazy(list):
        def __getitem__(self, index):
            decoded.append(index)
            return super().__getitem__(index)

    rows = Prepared(Lazy(digits.rgb[:3]), spec)
    first = next(iter(rows))
    assert decoded == [0]
    np.testing.assert_array_equal(first, prepare(digits.rgb[0], spec))
    np.testing.assert_array_equal(rows.array(), rows.array())
    assert len(rows) == 3


def test_hashes_tell_inputs_apart_and_a_copy_is_found(digits, spec):
    calibration = Prepared(digits.rgb[:5], spec)
    assert len(set(calibration.hashes)) == 5
    assert calibration.without(calibration.like(digits.rgb[5:9])) == (calibration, [0, 1, 2, 3, 4])
    larger = np.repeat(np.repeat(digits.rgb[3], 1, axis=0), 1, axis=1)  # other bytes in memory, the same picture
    others, kept = calibration.without(calibration.like([digits.rgb[9], larger]))
    assert kept == [0, 1, 2, 4]
    assert others.hashes == [calibration.hashes[i] for i in kept]
