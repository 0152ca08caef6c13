"""One preprocessing for training, scoring and injection: values, refusals, the locked checksum."""

import numpy as np
import pytest
import torch

from lensaudit.artifacts import UserError
from lensaudit.pixels.preprocessing import Preprocessing, make_preprocessing, make_reference_stamp

# Of the specification and of the integer reference stamp; a change means that every stored detector must be retrained.
CHECKSUM = "7d3457e48154184ef2059ab2e70a4d647a2047255e8dbfeae5610ff236a00d61"


@pytest.fixture
def stamps():
    rng = np.random.default_rng(1)
    return torch.as_tensor(rng.normal(0.01, 0.02, (5, 3, 101, 101)).astype(np.float32))


def test_checksum_is_locked():
    assert make_preprocessing("raw_robust").checksum() == CHECKSUM
    out = make_preprocessing("raw_robust").apply(make_reference_stamp())
    assert out.shape == (1, 3, 64, 64)
    expected = [10.0, -1.2647, 1.2680]  # centre of g, a corner of r, a pixel of z
    found = [float(out[0, 0, 32, 32]), float(out[0, 1, 0, 0]), float(out[0, 2, 10, 20])]
    assert found == pytest.approx(expected, abs=1e-4)


def test_statistics_are_those_of_numpy(stamps):
    y, x = np.indices((101, 101)) - 50
    ring = (np.hypot(x, y) >= 20) & (np.hypot(x, y) < 32)
    out = make_preprocessing("raw_robust", clip=1e9).apply(stamps)
    for band in range(3):
        image = stamps[0, band].numpy().astype(float)
        median = np.median(image[ring])
        sigma = 1.4826 * np.median(np.abs(image[ring] - median))
        expected = ((image - median) / sigma)[18:82, 18:82]
        assert out[0, band].numpy() == pytest.approx(expected, abs=1e-4)
    assert out.std() == pytest.approx(1.0, abs=0.03)


def test_named_specifications(stamps):
    robust, raw = make_preprocessing("raw_robust", clip=1e9), make_preprocessing("raw_mad", clip=1e9)
    assert raw.apply(stamps) == pytest.approx(1.4826 * robust.apply(stamps), rel=1e-5)
    assert make_preprocessing("raw_asinh").apply(stamps) == pytest.approx(robust.apply(stamps).asinh(), abs=1e-6)
    assert make_preprocessing(crop=101).apply(stamps).shape == (5, 3, 101, 101)
    assert make_preprocessing(clip=2.0).apply(stamps).abs().max() == 2.0
    with pytest.raises(UserError, match="known are raw_robust"):
        make_preprocessing("zscore")


def test_small_box_gives_the_same_bits(stamps):
    spec = Preprocessing()
    box = stamps[:, :, 18:83, 18:83].contiguous()
    assert box.shape[-1] == 65
    assert torch.equal(spec.apply(stamps), spec.apply(box))
    with pytest.raises(UserError, match="at least 101"):
        make_preprocessing(crop=101).apply(box)
    with pytest.raises(UserError, match="odd"):
        spec.apply(stamps[:, :, :100, :100])


def test_rows_do_not_depend_on_their_batch(stamps):
    spec = Preprocessing()
    whole = spec.apply(stamps)
    assert all(torch.equal(whole[i], spec.apply(stamps[i : i + 1])[0]) for i in range(len(stamps)))


def test_invalid_pixels_are_left_out_of_the_statistics(stamps):
    spec = make_preprocessing(clip=1e9)
    gap = stamps.clone()
    gap[:, :, :, 81:] = 0.0  # no data at the right rim, inside the annulus, outside most of the crop
    same = (spec.apply(stamps) - spec.apply(gap))[..., :60].abs().max()
    assert same < 0.2  # the statistics move only by their own scatter
    gap[:, :, :, 82:] = float("nan")
    assert torch.isfinite(spec.apply(gap)).all()


def test_refusals_name_the_object(stamps):
    spec, ids = Preprocessing(), ["a-1", "a-2", "a-3", "a-4", "a-5"]
    broken = stamps.clone()
    broken[3, 1, 40, 40] = float("nan")
    with pytest.raises(UserError, match="a-4.*not finite"):
        spec.apply(broken, ids)
    broken = stamps.clone()
    broken[2, 2] = 0.0
    with pytest.raises(UserError, match="a-3.*background"):
        spec.apply(broken, ids)
    with pytest.raises(UserError, match="stamp number 2"):
        spec.apply(broken)


def test_round_trip():
    spec = make_preprocessing("raw_mad", 20, 101)
    assert Preprocessing.from_dict(spec.to_dict()) == spec
    with pytest.raises(UserError, match="unknown or missing"):
        Preprocessing.from_dict({"name": "raw_mad"})
