"""Conditions: measured seeing and depth against closed forms, the design tail, the footprint's weights."""

import numpy as np
import pytest

from lensaudit.simsky import conditions, physics, scene


@pytest.mark.parametrize("beta, ratio", [(2.5, 1.39), (3.0, 1.29), (3.5, 1.23), (4.0, 1.19), (4.765, 1.15)])
def test_psfsize_of_a_moffat(beta, ratio, monkeypatch):
    monkeypatch.setattr(conditions, "wing_image", lambda band, size: (np.zeros((size, size)), 0.0))
    size, _, _ = conditions.measure_psf(conditions.make_psf(1.2, beta, 0.0, 0.0, "r", 63))
    # Closed form: NEA = pi alpha^2 (2 beta - 1) / (beta - 1)^2; the table quotes it to two digits.
    alpha2 = 0.36 / (2 ** (1 / beta) - 1)
    area = np.pi * alpha2 * (2 * beta - 1) / (beta - 1) ** 2
    assert size == pytest.approx(2.3548 * np.sqrt(area / (4 * np.pi)), rel=2e-3)
    assert size / 1.2 == pytest.approx(ratio, abs=0.006)


def test_psfsize_of_a_gaussian_is_its_fwhm():
    x = (np.arange(63) - 31) * physics.PIXEL
    psf = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.5**2))
    size, norm2, galaxy = conditions.measure_psf(psf / psf.sum())
    assert size == pytest.approx(2.3548 * 0.5, rel=1e-4)
    assert norm2 == pytest.approx(physics.PIXEL**2 / (4 * np.pi * 0.25), rel=1e-4)
    assert galaxy < norm2


def test_galaxy_norm_against_a_drawn_exponential():
    psf = conditions.make_psf(1.1, 3.0, 0.0, 0.0, "r", scene.GRID)
    galaxy = scene.draw_sersic(scene.GRID, 50, 50, 0.45 / physics.PIXEL, 1.0, 0.0, 1.0)
    image = scene.convolve(galaxy[None], scene.transform_psf(psf)[None])[0]
    _, _, norm2 = conditions.measure_psf(conditions.make_psf(1.1, 3.0, 0.0, 0.0, "r", 63))
    assert norm2 == pytest.approx(float(np.sum(image**2)), rel=5e-3)


def test_wings_have_the_survey_s_amplitude():
    psf = conditions.make_psf(1.0, 4.0, 0.0, 0.0, "r", 144)
    r = 12.0  # arcsec, where the Moffat has died away; the table gives 0.00033 r^-2 nMgy/arcsec^2 for 1 nMgy
    pixel = 72 + round(r / physics.PIXEL)
    assert psf[72, pixel] / physics.PIXEL**2 == pytest.approx(0.00033 / r**2, rel=0.1)


def test_depth_is_that_of_a_matched_filter():
    # psfdepth = sum psf^2 / sigma^2 is the inverse variance of a point source's flux in white noise of sigma_pix.
    quarter = conditions.draw_quarters(5, [11], [False]).iloc[0]
    psf = conditions.make_psf(quarter["fwhm_r"], quarter["beta_r"], quarter["psf_e1_r"], quarter["psf_e2_r"], "r", 63)
    noise = np.random.default_rng(1).normal(0, quarter["sigma_pix_r"], (4000, 63 * 63))
    flux = noise @ psf.ravel() / np.sum(psf**2)
    assert 1 / flux.var() == pytest.approx(quarter["psfdepth_r"], rel=0.07)


def test_sigma_follows_from_sky_and_exposures():
    q = conditions.draw_quarters(5, range(20), np.arange(20) < 10)
    for band in physics.BANDS:
        rate = physics.to_flux(q[f"sky_{band}"]) * physics.PIXEL**2 * physics.GAIN[band]
        electrons = rate * q[f"exposure_{band}"] + q[f"n_exposures_{band}"] * physics.READ_NOISE**2
        sigma = np.sqrt(electrons) / (physics.GAIN[band] * q[f"exposure_{band}"])
        assert np.allclose(sigma, q[f"sigma_pix_{band}"], rtol=1e-6)


def test_tail_covers_the_grid_and_shallow_lists_are_short():
    q = conditions.draw_quarters(3, range(400), np.ones(400, bool))
    depth = 22.5 - 2.5 * np.log10(5 / np.sqrt(q["psfdepth_r"]))
    counts, _, _ = np.histogram2d(q["psfsize_r"], depth, [np.arange(0.825, 1.9, 0.15), np.arange(22.25, 25.8, 0.5)])
    assert counts.min() >= 8 and counts.sum() > 0.93 * len(q)
    shallow = q["n_exposures_r"][depth < 22.75].mean()
    assert shallow < 4 < q["n_exposures_r"][depth > 24.75].mean()
    assert (q["n_exposures_r"] < 3).any()


def test_survey_part_is_bimodal():
    q = conditions.draw_quarters(3, range(250), np.zeros(250, bool))
    depth = 22.5 - 2.5 * np.log10(5 / np.sqrt(q["psfdepth_r"]))
    assert 0.2 < (q["mode"] == "deep").mean() < 0.4
    assert np.median(depth[q["mode"] == "deep"]) == pytest.approx(25.15, abs=0.08)
    assert np.median(depth[q["mode"] == "shallow"]) == pytest.approx(24.25, abs=0.08)


def test_footprint_weight_restores_the_mix():
    q = conditions.draw_quarters(3, range(600), np.arange(600) < 240)
    counts = np.random.default_rng(0).integers(40, 60, len(q)).astype(float)
    weight = conditions.weigh_footprint(q, counts) * counts
    depth = 22.5 - 2.5 * np.log10(5 / np.sqrt(q["psfdepth_r"]))
    survey = counts * ~q["is_tail"]
    assert weight.sum() == pytest.approx(counts.sum(), rel=1e-9)
    for value in (q["psfsize_r"], depth):
        mean = np.average(value, weights=survey)
        spread = np.sqrt(np.average((value - mean) ** 2, weights=survey))
        got = np.average(value, weights=weight)
        assert got == pytest.approx(mean, abs=0.05 * spread)
        assert np.sqrt(np.average((value - got) ** 2, weights=weight)) == pytest.approx(spread, rel=0.05)
    # unweighted, the tail shows: it is wider in depth than the survey
    assert np.std(depth) > 1.2 * np.sqrt(np.average((depth - np.average(depth, weights=survey)) ** 2, weights=survey))
