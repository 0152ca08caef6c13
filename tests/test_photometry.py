"""Photometry against closed forms, a simulated coadd and one real Tractor row."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from lensaudit import photometry as ph
from lensaudit.artifacts import find_root
from lensaudit.constants import LANCZOS_RMS, PIXEL_SCALE


def lanczos(x):
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def test_magnitudes_round_trip():
    mag = np.array([15.0, 20.0, 22.5, 27.3])
    assert np.allclose(ph.flux_to_mag(ph.mag_to_flux(mag)), mag)
    assert ph.mag_to_flux(22.5) == 1.0
    assert np.isnan(ph.flux_to_mag([0.0, -1.0])).all()
    assert ph.mag_to_flux(np.inf) == 0.0
    assert np.allclose(ph.ivar_to_depth(ph.depth_to_ivar([22.5, 24.0])), [22.5, 24.0])
    # m5 = 22.5 - 2.5 log10(5 / sqrt(psfdepth)); values of the DR9 row quoted in the data's provenance.
    assert np.allclose(ph.ivar_to_depth([732.0, 285.0, 99.0]), [24.33, 23.82, 23.25], atol=0.02)


@pytest.mark.parametrize("beta, ratio", [(2.5, 1.39), (3.0, 1.29), (3.5, 1.23), (4.0, 1.19), (4.765, 1.15)])
def test_psfsize_is_wider_than_the_fwhm(beta, ratio):
    assert 1.0 / ph.psfsize_to_fwhm(1.0, beta) == pytest.approx(ratio, abs=0.005)
    # From the definition: same noise-equivalent area as the Gaussian of that FWHM, by numerical integration.
    alpha = 1.0 / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    norm = quad(lambda r: 2 * np.pi * r * (1 + (r / alpha) ** 2) ** -beta, 0, np.inf)[0]
    power = quad(lambda r: 2 * np.pi * r * (1 + (r / alpha) ** 2) ** (-2 * beta), 0, np.inf)[0]
    assert ph.noise_equivalent_area(ph.fwhm_to_psfsize(1.0, beta)) == pytest.approx(norm**2 / power, rel=1e-6)


def test_gaussian_psfsize_is_its_fwhm():
    assert ph.psfsize_to_fwhm(1.3, np.inf) == pytest.approx(1.3)
    assert ph.psfsize_to_fwhm(1.3, 1000.0) == pytest.approx(1.3, rel=1e-3)


def make_coadd(rng, sigma, n_exposures=40, size=128):
    """Average exposures of white noise, each resampled by Lanczos-3 at its own sub-pixel shift."""
    total = np.zeros((size, size))
    taps = np.arange(-3, 4)
    for _ in range(n_exposures):
        image = rng.normal(0.0, sigma * np.sqrt(n_exposures), (size + 6, size + 6))
        for axis in (0, 1):
            weight = lanczos(taps - rng.uniform(-0.5, 0.5))
            image = np.apply_along_axis(np.convolve, axis, image, weight / weight.sum(), "valid")
        total += image / n_exposures
    return total


def test_depth_and_sigma_against_a_simulated_coadd():
    """The coadd of exposures with the white sigma of a psfdepth has an RMS of 0.894 sigma and that depth."""
    rng, psfsize, depth, beta = np.random.default_rng(7), 1.4, 24.0, 3.5
    sigma = float(ph.depth_to_sigma(ph.depth_to_ivar(depth), psfsize))
    coadds = np.stack([make_coadd(rng, sigma) for _ in range(6)])
    rms = coadds.std()
    assert rms / sigma == pytest.approx(LANCZOS_RMS, abs=0.012)
    assert ph.sigma_to_rms(sigma) == pytest.approx(rms, rel=0.015)
    assert (coadds[:, :, 1:] * coadds[:, :, :-1]).mean() / rms**2 == pytest.approx(0.11, abs=0.015)
    assert (coadds[:, :, 2:] * coadds[:, :, :-2]).mean() / rms**2 == pytest.approx(-0.076, abs=0.015)
    # A matched filter of the PSF on the correlated noise scatters by the depth's own sigma: the PSF is far wider than
    # the kernel, which keeps low frequencies.
    grid = (np.arange(41) - 20) * PIXEL_SCALE
    alpha = ph.psfsize_to_fwhm(psfsize, beta) / (2 * np.sqrt(2 ** (1 / beta) - 1))
    psf = (1 + (grid[:, None] ** 2 + grid[None] ** 2) / alpha**2) ** -beta
    psf /= psf.sum()
    assert sigma / np.sqrt((psf**2).sum()) == pytest.approx(0.2 * ph.mag_to_flux(depth), rel=0.02)
    boxes = [c[i : i + 41, j : j + 41] for c in coadds for i in range(0, 88, 7) for j in range(0, 88, 7)]
    found = np.array([(b * psf).sum() / (psf**2).sum() for b in boxes])
    assert found.std() == pytest.approx(0.2 * ph.mag_to_flux(depth), rel=0.15)


def test_planted_psfsize_error_is_seen_in_sigma():
    ivar = ph.depth_to_ivar(24.0)
    assert ph.depth_to_sigma(ivar, 1.2 * 1.4) / ph.depth_to_sigma(ivar, 1.4) == pytest.approx(1 / 1.2)
    assert ph.sigma_to_depth(ph.depth_to_sigma(ivar, 1.4), 1.4) == pytest.approx(ivar)


def test_gain_is_of_order_ten_thousand():
    for band, seconds in (("g", 210.0), ("r", 180.0), ("z", 300.0)):
        assert 0.8e4 < ph.gain_of(seconds, band) < 1.3e4
    assert np.allclose([ph.gain_of(900.0, b) for b in "grz"], [39600, 47700, 35100])


def test_exposure_time_follows_depth():
    """DES coadds (10 x 90 s) at the medians of FACTS 2 come out at 900 s within the stated error."""
    for band, depth, fwhm in (("g", 25.35, 1.11), ("r", 25.15, 0.95), ("z", 23.85, 0.83)):
        seconds = ph.estimate_exptime(ph.depth_to_ivar(depth), 1.23 * fwhm, 10, band)
        assert 900 / 1.5 < seconds < 900 * 1.5
    deep, shallow = (ph.estimate_exptime(ph.depth_to_ivar(d), 1.3, 0, "r") for d in (25.0, 24.0))
    assert deep / shallow == pytest.approx(10**0.8, rel=1e-6)  # proportional to the inverse variance


def test_extinction():
    assert ph.flux_to_mag(ph.extinct_flux(1.0, 0.1, "g")) == pytest.approx(22.5 + 0.3214)


def test_tractor_angles_are_position_angles():
    # Tractor: e1 = e cos 2PA, e2 = e sin 2PA, PA east of north; north up, east left, so +x points west.
    for pa in (0.0, 30.0, 75.0, 140.0):
        e = 0.3
        shape = ph.tractor_to_lens_shape(1.0, e * np.cos(2 * np.radians(pa)), e * np.sin(2 * np.radians(pa)))
        direction = np.array([-np.sin(np.radians(pa)), np.cos(np.radians(pa))])  # the major axis on the image
        ours = np.array([np.cos(shape["phi"]), np.sin(shape["phi"])])
        assert abs(direction @ ours) == pytest.approx(1.0)
        assert shape["q"] == pytest.approx(0.7 / 1.3)
        assert shape["R_sersic"] == pytest.approx(np.sqrt(0.7 / 1.3))


def test_ellipticity_round_trip():
    from lenstronomy.Util.param_util import ellipticity2phi_q

    q, phi = ph.ellipticity_to_axes(*ph.axes_to_ellipticity(0.6, 0.4))
    assert (q, phi) == (pytest.approx(0.6), pytest.approx(0.4))
    theirs = ellipticity2phi_q(*ph.axes_to_ellipticity(0.6, 0.4))
    assert theirs == (pytest.approx(0.4), pytest.approx(0.6))


def test_tractor_shape_of_a_real_row():
    root = os.environ.get("LENSAUDIT_DATA") or find_root().parent / "shared" / "data"
    path = Path(root) / "ls-dr9-tractor-1row" / "tractor-1054p567.fits"
    if not path.is_file():
        pytest.skip("no real Tractor row at hand")
    from astropy.io import fits
    from lenstronomy.Util.param_util import ellipticity2phi_q

    row = fits.getdata(path)[0]
    e1, e2 = float(row["SHAPE_E1"]), float(row["SHAPE_E2"])
    shape = ph.tractor_to_lens_shape(float(row["SHAPE_R"]), e1, e2)
    assert 0 < shape["q"] <= 1
    # The same galaxy, had it this row's size and an ellipticity: lenstronomy reads the angle turned by 90 degrees.
    shape = ph.tractor_to_lens_shape(float(row["SHAPE_R"]), e1 + 0.2, e2 + 0.1)
    phi, q = ellipticity2phi_q(float(shape["e1"]), float(shape["e2"]))
    assert q == pytest.approx(float(shape["q"]))
    turned = phi - 0.5 * np.arctan2(e2 + 0.1, e1 + 0.2)
    assert abs(np.cos(turned)) < 1e-9
    assert ph.ivar_to_depth(float(row["PSFDEPTH_R"])) == pytest.approx(23.82, abs=0.01)
