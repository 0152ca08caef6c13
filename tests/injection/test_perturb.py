"""Domain randomisation: what each step does to noise and flux, and that nothing else happens."""

import numpy as np
import pandas as pd
import pytest
import torch
from lenstronomy.LightModel.Profiles.moffat import Moffat
from lenstronomy.Util.param_util import ellipticity2phi_q
from scipy.stats import median_abs_deviation

from lensaudit import rng
from lensaudit.artifacts import UserError
from lensaudit.constants import PIXEL_SCALE
from lensaudit.injection import perturb
from lensaudit.injection.noise import draw_noise

N, SIZE, BETA = 24, 101, 3.5
FWHM = np.array([1.3, 1.1, 1.0])  # arcsec
SIGMA = np.array([0.008, 0.006, 0.015])  # nMgy per pixel
IDS = np.arange(N) + 50
PSF = {"fwhm": np.tile(FWHM, (N, 1)), "beta": np.full(N, BETA)}
OFF = dict.fromkeys(perturb.STEPS, 0.0)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sky():
    flat = np.broadcast_to(SIGMA[None, :, None, None], (N, 3, SIZE, SIZE))
    return draw_noise(IDS, flat, 5, "test/sky")


def draw_stars(flux=30.0, e1=0.0, e2=0.0, dx=0.0, dy=0.0):
    """The PSF of each band at the stamp's centre, lenstronomy's Moffat and angle, shape (3, SIZE, SIZE)."""
    phi, q = ellipticity2phi_q(e1, e2)
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    x, y = x - dx, y - dy
    along, across = x * np.cos(phi) + y * np.sin(phi), y * np.cos(phi) - x * np.sin(phi)
    alpha = FWHM / (2 * np.sqrt(2 ** (1 / BETA) - 1)) / PIXEL_SCALE
    shape = [
        Moffat().function(along * np.sqrt(q), across / np.sqrt(q), 1.0, a, BETA) * (BETA - 1) / a**2 for a in alpha
    ]
    return flux * np.stack(shape) / np.pi


def run(images, steps, seed=3, rows=slice(None), **amplitudes):
    psf = {k: v[rows] for k, v in PSF.items()}
    values = perturb.Amplitudes(**amplitudes) if amplitudes else None
    return perturb.perturb_stamps(images[rows], IDS[rows], seed=seed, profiles=steps, amplitudes=values, **psf)


def test_zero_amplitude_returns_the_bits(sky):
    images = sky.copy()
    images[0, 0, 3, 3], images[1, 1, :4] = np.nan, -0.0
    assert run(images, "none").tobytes() == images.tobytes()
    assert run(images, "all", **OFF).tobytes() == images.tobytes()
    for step in perturb.STEPS:
        assert run(images, step, **{step: 0.0}).tobytes() == images.tobytes()
    assert run(images, "cosmic_rays", ray_rate=0.0).tobytes() == images.tobytes()


def test_noise_unit_is_the_annulus_mad(sky):
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    ring = (np.hypot(x, y) >= 20) & (np.hypot(x, y) < 32)
    units = perturb.measure_mad(sky)
    assert np.allclose(units, median_abs_deviation(sky[:, :, ring].astype(float), axis=-1))
    assert np.abs(units.mean(0) / (0.6745 * 0.894 * SIGMA) - 1).max() < 0.02
    gaps = sky[:1].copy()
    gaps[:, :, 20:30], gaps[:, :, 75, 50] = 0.0, np.nan
    assert np.abs(perturb.measure_mad(gaps) / units[:1] - 1).max() < 0.1


def test_anisotropy_makes_the_psf_elliptical_and_keeps_flux_and_area(sky):
    stars = draw_stars()
    images = sky + stars.astype(np.float32)
    star = run(images, "psf").astype(float) - run(sky, "psf")
    angle = np.empty((N, 3))
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    for row, number in enumerate(IDS):
        angle[row] = np.pi * rng.make_stream(3, "injection/perturb/psf", int(number)).random(3)
        for band in range(3):
            image = star[row, band]
            assert image.sum() == pytest.approx(stars[band].sum(), rel=1e-4)
            wanted = draw_stars(e1=0.05 * np.cos(2 * angle[row, band]), e2=0.05 * np.sin(2 * angle[row, band]))[band]
            # The smallest scales, which the PSF transmits less than a hundredth of, are left alone.
            change = np.abs(wanted - stars[band])
            assert np.abs(image - wanted).max() < 0.2 * change.max()
            assert (image**2).sum() == pytest.approx((stars[band] ** 2).sum(), rel=5e-3)  # noise-equivalent area
            weight = image * np.exp(-0.5 * (x**2 + y**2) / 4.0**2)
            xx, yy, xy = ((weight * m).sum() for m in (x * x, y * y, x * y))
            along = 0.5 * np.arctan2(2 * xy, xx - yy)
            assert abs(np.angle(np.exp(2j * (along - angle[row, band])))) < 0.1
    assert angle.std() > 0.6


def test_anisotropy_leaves_the_noise_nearly_alone(sky):
    out = run(sky, "psf")[..., 8:-8, 8:-8].astype(float)
    before = sky[..., 8:-8, 8:-8].astype(float)
    ratio = out.var(axis=(0, 2, 3)) / before.var(axis=(0, 2, 3))
    assert (ratio > 0.999).all() and (ratio < 1.013).all()  # the full ratio of the PSFs would give 1.09 to 1.18
    assert np.abs(out.mean(axis=(2, 3)) - before.mean(axis=(2, 3))).max() < 1e-3 * SIGMA.max()


def test_plane_moves_the_mean_by_its_amplitude_and_nothing_else(sky):
    arc = draw_stars(200.0).astype(np.float32)
    units = perturb.measure_mad(sky + arc)
    plane = run(sky + arc, "plane", plane=0.02).astype(float) - (sky + arc)
    assert np.allclose(np.abs(plane.mean(axis=(2, 3))), 0.02 * units, rtol=1e-3)
    assert {-1.0, 1.0} == set(np.sign(plane.mean(axis=(2, 3))).ravel())
    # A plane has no second differences: no light, no noise. What is left is float32's rounding.
    bend = np.diff(plane, 2, axis=-1)
    assert np.abs(bend[..., :30, :]).max() < 1e-2 * 0.02 * units.max()
    edges = plane - plane.mean(axis=(2, 3), keepdims=True)
    corner = np.abs(edges[..., [0, 0, -1, -1], [0, -1, 0, -1]]).max(axis=-1) / (0.02 * units)
    assert (corner > 0.99).all() and (corner < 1.42).all()


def test_saturation_wings_have_their_peak_off_centre_and_no_noise(sky):
    units = perturb.measure_mad(sky)[:, :, None, None]
    added = (run(sky, "saturation").astype(float) - sky) / units
    assert added.min() > 0
    peak = added.max(axis=(2, 3))
    assert np.allclose(peak, 12.0, rtol=1e-4)
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    for stamp in added:
        places = {np.unravel_index(band.argmax(), band.shape) for band in stamp}
        assert len(places) == 1  # one star for all bands
        row, column = places.pop()
        distance = np.hypot(row - 50, column - 50)
        assert 25 <= distance <= 32
        r = np.hypot(x - (column - 50), y - (row - 50)) * PIXEL_SCALE
        assert (stamp >= 12 / (1 + r**2) * (1 - 1e-3)).all()  # the survey's r^-2 halo, softened at 1 arcsec
        assert np.median(stamp[0] / (12 / (1 + r**2))) < 1.05  # most pixels see the halo only, a few the spikes
    smooth = added[..., 45:56, 45:56].mean(axis=(2, 3))
    assert (smooth < 2.5).all() and (smooth > 0.1).all()


def test_cosmic_rays_come_in_the_number_and_amplitude_asked_for(sky):
    counts, hits = [], []
    for number in range(1500):
        tracks, count = perturb.draw_tracks(rng.make_stream(1, "test", number), SIZE, 2.0)
        counts.append(count)
        hits.append(tracks.sum())
        assert set(np.unique(tracks)) <= {0.0, 1.0} and (count == 0) == (tracks.sum() == 0)
    assert np.mean(counts) == pytest.approx(2.0, abs=0.15) and np.var(counts) == pytest.approx(2.0, abs=0.3)
    # Length 1 + 4 pixels, the longest cut at 15, times 4/pi for the angle, plus the first pixel; some leave the stamp.
    assert 5.5 < np.sum(hits) / np.sum(counts) < 7.2
    # In the coadd: Lanczos-3 keeps the charge and lowers the peak.
    units = perturb.measure_mad(sky)
    added = (run(sky, "cosmic_rays").astype(float) - sky) / units[:, :, None, None]
    touched = np.abs(added) > 1e-3
    clean = ~touched.any(axis=(2, 3))
    assert np.exp(-2.0) == pytest.approx(clean.mean(), abs=0.12)
    assert added.max() < 1.5 * 8 and added[~clean].max(axis=(1, 2)).min() > 0.3 * 8
    assert touched.mean() < 0.05
    charge = added.sum(axis=(2, 3)) / 8
    assert 4.5 < charge.sum() / (2.0 * charge.size) < 8.5
    assert (run(sky, "cosmic_rays", cosmic_rays=16.0) - sky)[~clean].sum() == pytest.approx(
        2 * (run(sky, "cosmic_rays") - sky)[~clean].sum(), rel=1e-3
    )


# Step: noise unit after over before (16th to 84th percentile at most this far from it), change of the flux inside 15
# pixels in units of that sum's white noise (smallest and largest). A plane of 0.02 MAD adds 0.02 x 0.6745 x 0.894
# x sqrt(pixels) = 0.32 either way; halo and spikes of a star beyond 26 pixels are what saturation is meant to be.
EFFECTS = {"psf": (1.0, 0.03, 0.0, 0.01), "plane": (1.0, 0.01, 0.29, 0.34), "saturation": (1.13, 0.07, 3.0, 7.0),
           "cosmic_rays": (1.0, 0.03, 0.0, 0.01), "jitter": (1.0, 0.04, 0.0, 0.01)}  # fmt: skip


@pytest.mark.parametrize("step", perturb.STEPS)
def test_steps_change_the_local_noise_and_an_arcs_flux_as_stated(sky, step):
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    inside = np.hypot(x, y) < 15
    before = sky + draw_stars(20.0).astype(np.float32)
    after = run(before, step)
    ratio = perturb.measure_mad(after) / perturb.measure_mad(before)
    flux = (after - before)[..., inside].astype(float).sum(axis=-1) / (SIGMA * np.sqrt(inside.sum()))
    middle, spread, low, high = EFFECTS[step]
    assert np.abs(np.percentile(ratio, [16, 50, 84]) - middle).max() < spread
    assert low <= np.abs(np.median(np.abs(flux) if step == "plane" else flux)) <= high


def test_lanczos_resampling_keeps_the_sum_and_moves_the_centre():
    image = np.zeros((41, 41))
    image[20, 17] = 8.0
    y, x = np.indices(image.shape)
    for dx, dy in ((0.0, 0.0), (0.4, -0.2), (-0.5, 0.5)):
        out = perturb.resample_lanczos(image, dx, dy)
        assert out.sum() == pytest.approx(8.0, rel=1e-12)
        assert (out * x).sum() / 8 == pytest.approx(17 + dx, abs=0.02)
        assert (out * y).sum() / 8 == pytest.approx(20 + dy, abs=0.02)
        taps = np.arange(-5, 6)
        kernel = np.where(np.abs(taps - dx) < 3, np.sinc(taps - dx) * np.sinc((taps - dx) / 3), 0)
        assert np.allclose(out.sum(0)[12:23], 8 * kernel / kernel.sum(), atol=1e-12)


def test_jitter_moves_the_bands_and_keeps_flux_and_noise(sky):
    stars = draw_stars()
    star = run(sky + stars.astype(np.float32), "jitter").astype(float) - run(sky, "jitter")
    shifts = np.empty((N, 3, 2))
    for row, number in enumerate(IDS):
        stream = rng.make_stream(3, "injection/perturb/jitter", int(number))
        shifts[row] = stream.normal(0.0, 0.03 / PIXEL_SCALE, (3, 2))
        for band in range(3):
            dx, dy = shifts[row, band]
            wanted = draw_stars(dx=dx, dy=dy)[band]
            assert np.abs(star[row, band] - wanted).max() < 1e-4 * wanted.max()
            assert star[row, band].sum() == pytest.approx(stars[band].sum(), rel=1e-5)
    assert shifts.std() * PIXEL_SCALE == pytest.approx(0.03, rel=0.15)
    out = run(sky, "jitter")
    ratio = out[..., 5:-5, 5:-5].var(axis=(0, 2, 3)) / sky[..., 5:-5, 5:-5].var(axis=(0, 2, 3))
    assert np.abs(ratio - 1).max() < 2e-3
    neighbours = [(a[..., :-1] * a[..., 1:]).mean() / a.var() for a in (out[:, 1], sky[:, 1])]
    assert neighbours[0] == pytest.approx(neighbours[1], abs=2e-3)


def test_rows_depend_on_seed_and_id_only(sky):
    profiles = np.array(list(perturb.PROFILES) * 4)[:N]
    whole = run(sky, profiles)
    order = np.random.default_rng(0).permutation(N)
    part = perturb.perturb_stamps(sky[order[:5]], IDS[order[:5]], PSF["fwhm"][:5], PSF["beta"][:5], 3,
                                  profiles[order[:5]])  # fmt: skip
    assert np.array_equal(part, whole[order[:5]])
    assert not np.array_equal(run(sky, profiles, seed=4), whole)
    assert np.isfinite(run(sky, "all")).all()
    same = (whole == sky).all(axis=(1, 2, 3))
    assert same[profiles == "none"].all() and not same[profiles == "all"].any()


def test_all_steps_follow_each_other_in_order(sky):
    """All is each in turn, with the noise unit of the stamp that came in."""
    stepwise, units = sky.copy(), perturb.measure_mad(sky)
    for step in ("psf", "plane", "saturation", "cosmic_rays", "jitter"):
        # Scaling amplitudes by the ratio of the units undoes their drift from step to step, band by band.
        for band in range(3):
            now = perturb.measure_mad(stepwise)
            for row in range(2):
                scale = units[row, band] / now[row, band] if step in ("plane", "saturation", "cosmic_rays") else 1.0
                value = perturb.Amplitudes(**{step: getattr(perturb.Amplitudes(), step) * scale})
                moved = perturb.perturb_stamps(stepwise[row : row + 1], IDS[row : row + 1], PSF["fwhm"][:1],
                                               PSF["beta"][:1], 3, step, value)  # fmt: skip
                stepwise[row, band] = moved[0, band]
    assert np.abs(stepwise[:2] - run(sky, "all")[:2]).max() < 1e-5 * np.abs(stepwise[:2]).max()


def test_pixels_without_data_stay(sky):
    images = sky[:2].copy()
    images[:, :, :5], images[0, 1, 30, 30] = 0.0, np.nan
    out = run(images, "all", rows=slice(0, 2))
    assert (out[:, :, :5] == 0).all() and np.isnan(out).sum() == 1 and np.isnan(out[0, 1, 30, 30])


def test_refusals_name_the_row(sky):
    flat, psf = sky.copy(), {"fwhm": PSF["fwhm"].copy(), "beta": PSF["beta"]}
    flat[4, 2], psf["fwhm"][7, 0] = 1.0, np.nan
    with pytest.raises(UserError, match="injection 54: z has an empty or constant background"):
        run(flat, "all")
    with pytest.raises(UserError, match="injection 57: the PSF's FWHM or beta in g"):
        perturb.perturb_stamps(sky, IDS, seed=1, **psf)
    with pytest.raises(UserError, match="injection 51: artifact_profile 'rain' unknown"):
        run(sky, ["none", "rain", *["none"] * (N - 2)])
    with pytest.raises(UserError, match="S >= 65"):
        run(sky[..., :61, :61], "all")
    for bad in ({"psf": 0.6}, {"plane": -1.0}, {"jitter": np.nan}):
        with pytest.raises(UserError, match=f"amplitude {next(iter(bad))}"):
            perturb.Amplitudes(**bad)


MIX = {
    "plain": {"share": 0.6, "source_mode": "clumpy", "artifact_profile": "none"},
    "smooth": {"share": 0.3, "source_mode": "sersic", "artifact_profile": "all"},
    "never": {"share": 0.0, "source_mode": "point", "artifact_profile": "jitter"},
    "bank": {"share": 0.1, "source_mode": "bank", "artifact_profile": "cosmic_rays"},
}


def test_mixer_replaces_columns_and_keeps_shares():
    table = pd.DataFrame({"injection_id": np.arange(4000), "source_mode": "sersic", "theta_E": 1.0})
    out = perturb.assign_variants(table, MIX, 8)
    assert list(out.columns) == ["injection_id", "source_mode", "theta_E", "artifact_profile", "gen_variant"]
    assert set(perturb.COLUMNS) <= set(out.columns)
    for name, variant in MIX.items():
        rows = out["gen_variant"] == name
        assert rows.mean() == pytest.approx(variant["share"], abs=0.025)
        assert (out.loc[rows, "source_mode"] == variant["source_mode"]).all()
        assert (out.loc[rows, "artifact_profile"] == variant["artifact_profile"]).all()
    assert (
        "never" not in set(out["gen_variant"]) and "source_mode" in table and (table["source_mode"] == "sersic").all()
    )
    order = np.random.default_rng(1).permutation(4000)
    again = perturb.assign_variants(out.iloc[order], dict(reversed(MIX.items())), 8)
    pd.testing.assert_frame_equal(again.sort_index(), out)
    assert (perturb.assign_variants(table, MIX, 9)["gen_variant"] != out["gen_variant"]).mean() > 0.3


@pytest.mark.parametrize(
    "change, words",
    [
        ({"plain": MIX["plain"] | {"share": 0.7}}, "add up to 1"),
        ({"plain": MIX["plain"] | {"source_mode": "star"}}, "variant 'plain': source_mode 'star' unknown"),
        ({"plain": MIX["plain"] | {"artifact_profile": "rain"}}, "artifact_profile 'rain' unknown"),
        ({"plain": {"share": 0.6}}, "variant 'plain': give exactly"),
    ],
)
def test_mixer_refuses_a_bad_mix(change, words):
    with pytest.raises(UserError, match=words):
        perturb.assign_variants(pd.DataFrame({"injection_id": [1]}), MIX | change, 1)
    with pytest.raises(UserError, match="injection_id"):
        perturb.assign_variants(pd.DataFrame({"id": [1]}), MIX, 1)
