"""Blind arc estimators: known arcs, frames of two sizes, and what must cancel."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lensaudit.artifacts import UserError
from lensaudit.audit import detectability
from lensaudit.constants import LANCZOS_RMS

SIGMA = 0.02  # white-equivalent, nMgy


def make_stamps(n, size=101, host=20.0, arc=0.0, seed=0, q=0.7, colour=(0.8, 1.0, 1.0)):
    """Elliptical hosts with one off-centre arc of given total flux, white noise of the coadd's RMS."""
    generator = np.random.default_rng(seed)
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    profile = np.exp(-np.hypot(x, y / q) / 2.5)
    blob = gaussian_filter(((np.hypot(x, y) > 5.5) & (np.hypot(x, y) < 7.0) & (x > np.abs(y))).astype(float), 1.8)
    flux = np.array(colour)[:, None, None]
    model = host * profile / profile.sum() + arc * flux * blob / blob.sum()
    return (model + generator.normal(size=(n, 3, size, size)) * SIGMA * LANCZOS_RMS).astype(np.float32)


def test_stamp_and_box_give_the_same_numbers():
    stamps = make_stamps(5, arc=3.0)
    full, box = detectability.measure_arcs(stamps), detectability.measure_arcs(stamps[:, :, 18:83, 18:83])
    assert full.equals(box)
    assert full.tail(2).reset_index(drop=True).equals(detectability.measure_arcs(stamps[3:]))


def test_noise_is_white_equivalent():
    measured = detectability.measure_arcs(make_stamps(64, host=0.0))
    assert np.isclose(measured["sigma_pix_r"].median(), SIGMA, rtol=0.015)
    assert abs(measured["rho10"].mean()) < 0.01
    assert abs(measured["arc_snr"].mean()) < 0.4


def test_elliptical_host_cancels_in_the_antisymmetric_part():
    without = detectability.measure_arcs(make_stamps(32, host=50.0))
    with_arc = detectability.measure_arcs(make_stamps(32, host=50.0, arc=4.0))
    assert without["arc_area"].median() < detectability.MIN_ARC_PIXELS
    assert abs(without["arc_energy"]).median() < 5
    assert with_arc["arc_energy"].min() > without["arc_energy"].max()
    assert with_arc["detectability"].median() > without["detectability"].max()


def test_arc_colour_radius_and_flux_are_recovered():
    measured = detectability.measure_arcs(make_stamps(32, arc=6.0, colour=(0.5, 1.0, 2.0)))
    assert np.isclose(measured["arc_g_r"].median(), 2.5 * np.log10(2), atol=0.1)
    assert np.isclose(measured["arc_r_z"].median(), 2.5 * np.log10(2), atol=0.1)
    assert np.isclose(measured["arc_radius"].median(), 6.3 * 0.262, atol=0.25)
    n_pix = detectability._annulus(detectability.ARC_ANNULUS).sum()
    expected = 6.0 * 0.9 / (SIGMA * np.sqrt(n_pix))
    assert 0.6 * expected < measured["arc_snr"].median() < 1.2 * expected


def test_host_magnitude_does_not_feel_the_arc():
    plain = detectability.measure_arcs(make_stamps(16, host=20.0))["mag_host"].median()
    arc = detectability.measure_arcs(make_stamps(16, host=20.0, arc=4.0))["mag_host"].median()
    assert np.isclose(plain, 22.5 - 2.5 * np.log10(20.0), atol=0.05)
    assert abs(arc - plain) < 0.12  # the arc holds 0.2 mag of the total


def test_bias_is_subtracted():
    controls = detectability.measure_arcs(make_stamps(64, host=50.0))
    bias = detectability.fit_bias(controls)
    corrected = detectability.correct_bias(controls, bias)
    assert abs(corrected["arc_snr"].median()) < 0.2
    assert np.allclose(corrected["arc_snr_raw"], controls["arc_snr"])


def test_gate_threshold_has_the_rate_asked_for():
    values = np.random.default_rng(1).random(5000)
    gate = detectability.fit_gate(values, 0.01)
    assert gate["n_exceedances"] == 50 and gate["status"] == "reported"
    assert detectability.fit_gate(values[:200], 0.01)["status"] == "too few negatives"
    heavy = np.where(values > 0.5, 3.0, 1.0)
    assert detectability.fit_gate(values, 0.01, heavy)["n_exceedances"] < 50


def test_wrong_shapes_are_refused():
    with pytest.raises(UserError, match="too small"):
        detectability.measure_arcs(np.zeros((2, 3, 33, 33), np.float32))
    with pytest.raises(UserError, match="odd"):
        detectability.measure_arcs(np.zeros((2, 3, 64, 64), np.float32))
