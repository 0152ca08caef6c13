"""Mode (ii): the degraded stamp is the target's star in the target's noise, and nothing is sharpened or deepened."""

import numpy as np
import pandas as pd
import pytest
import torch
from lenstronomy.LightModel.Profiles.moffat import Moffat

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, LANCZOS_RMS, PIXEL_SCALE
from lensaudit.injection import degrade
from lensaudit.injection.noise import draw_noise

BETA = 3.5
OWN = np.array([0.010, 0.006, 0.012])  # nMgy per pixel
TARGET = np.array([0.014, 0.0063, 0.030])
FWHM = np.array([1.1, 0.95, 0.85])  # arcsec
WIDER = np.array([1.5, 1.1, 1.6])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def conditions(n, fwhm, sigma, beta=BETA):
    return degrade.Conditions(np.tile(fwhm, (n, 1)), np.full(n, beta), np.tile(sigma, (n, 1)))


def draw_star(fwhm, size=101, flux=40.0, beta=BETA, dx=0.3, dy=-0.2):
    """A star of the survey: lenstronomy's Moffat at pixel centres."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1)) / PIXEL_SCALE
    y, x = np.indices((size, size)) - size // 2
    return flux * (beta - 1) / (np.pi * alpha**2) * Moffat().function(x, y, 1.0, alpha, beta, dx, dy)


def draw_sky(ids, sigma, size=101):
    flat = np.broadcast_to(np.asarray(sigma)[None, :, None, None], (len(ids), len(sigma), size, size))
    return draw_noise(ids, flat, 5, "test/sky")


def correlate(noise, dy, dx):
    n = noise.shape[-1] - 2
    a, b = noise[..., :n, :n], noise[..., dy : n + dy, dx : n + dx]
    return (a * b).mean(axis=(0, 2, 3)) / noise.var(axis=(0, 2, 3))


@pytest.mark.parametrize("beta", [2.5, 3.5, 4.5, np.inf])
def test_star_becomes_the_targets_star(beta):
    """The stamp with the star less the stamp without it, same noise: FWHM, flux and every pixel."""
    ids, own, target = [3], conditions(1, FWHM, OWN, beta), conditions(1, WIDER, TARGET, beta)
    if np.isinf(beta):

        def draw(fwhm):
            sigma = fwhm / photometry.FWHM_OF_SIGMA / PIXEL_SCALE
            y, x = np.indices((101, 101)) - 50.0
            return 40 * np.exp(-0.5 * ((x - 0.3) ** 2 + (y + 0.2) ** 2) / sigma**2) / (2 * np.pi * sigma**2)
    else:

        def draw(fwhm):
            return draw_star(fwhm, beta=beta)

    before, after = np.stack([draw(f) for f in FWHM]), np.stack([draw(f) for f in WIDER])
    sky = draw_sky(ids, OWN)
    degraded = degrade.degrade_stamps(sky + before[None].astype(np.float32), own, target, ids, 1).astype(float)
    star = (degraded - degrade.degrade_stamps(sky, own, target, ids, 1))[0]
    for band in range(3):
        assert np.abs(star[band] - after[band]).max() < 1e-4 * after[band].max()
        assert star[band].sum() == pytest.approx(before[band].sum(), rel=5e-4)
        # Cuts through the star's centre on a ten times finer Fourier interpolation.
        fine = np.fft.rfft2(star[band])
        wide = np.zeros((1010, 506), complex)
        wide[:51, :51], wide[-50:, :51] = fine[:51], fine[-50:]
        image = np.fft.irfft2(wide, s=(1010, 1010))
        for cut, centre in ((image[498], 503), (image[:, 503], 498)):
            sides = (cut[centre : centre + 100], cut[centre : centre - 100 : -1])
            width = sum(np.interp(-0.5, -side / cut[centre], np.arange(100)) for side in sides) * PIXEL_SCALE / 10
            assert width == pytest.approx(WIDER[band], rel=2e-3)


def test_noise_is_coadd_noise_of_the_target():
    """Variance within 1 % of 0.894^2 sigma_pix^2, FACTS' correlations, and the spectrum of noise drawn outright."""
    ids = np.arange(48)
    sky = draw_sky(ids, OWN)
    out = degrade.degrade_stamps(sky, conditions(48, FWHM, OWN), conditions(48, WIDER, TARGET), ids, 1)
    inner = out[..., 10:-10, 10:-10].astype(float)
    ratio = inner.var(axis=(0, 2, 3)) / (LANCZOS_RMS * TARGET) ** 2
    assert np.abs(ratio - 1).max() < 0.01
    assert np.abs(correlate(inner, 0, 1) - 0.11).max() < 0.006
    assert np.abs(correlate(inner, 1, 0) - 0.11).max() < 0.006
    assert np.abs(correlate(inner, 1, 1) - 0.013).max() < 0.006
    assert np.abs(correlate(inner, 0, 2) + 0.076).max() < 0.006
    # White-equivalent: the sum over a box, which the correlation leaves alone, has the white variance.
    boxes = inner[..., :80, :80].reshape(48, 3, 8, 10, 8, 10).sum(axis=(3, 5))
    drawn = draw_sky(ids + 1000, TARGET)[..., 10:90, 10:90].astype(float).reshape(48, 3, 8, 10, 8, 10).sum(axis=(3, 5))
    assert np.abs(boxes.var(axis=(0, 2, 3)) / drawn.var(axis=(0, 2, 3)) - 1).max() < 0.08
    spectra = [(np.abs(np.fft.rfft2(x)) ** 2).mean(axis=0)
               for x in (inner, draw_sky(ids + 1000, TARGET)[..., 10:-10, 10:-10].astype(float))]  # fmt: skip
    k = np.hypot(np.fft.fftfreq(81)[:, None], np.fft.rfftfreq(81)[None])
    for low, high in ((0.03, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.5), (0.5, 0.7)):
        ring = (k >= low) & (k < high)
        assert np.abs(spectra[0][:, ring].mean(1) / spectra[1][:, ring].mean(1) - 1).max() < 0.06


def test_smoothed_noise_is_counted():
    """Adding sigma_t^2 - sigma_o^2 as if the kernel left the noise alone is far off: the check above can fail."""
    ids = np.arange(16)
    own, target = conditions(16, FWHM, OWN), conditions(16, WIDER, TARGET)
    alone = degrade.Conditions(target.fwhm, target.beta, own.sigma)
    side = degrade.padded_size(101)
    kernel = degrade.make_kernel(own, alone, 0, np.hypot(*degrade.make_frequencies(side)))
    smooth = np.stack([degrade.filter_stamp(stamp, kernel)[0] for stamp in draw_sky(ids, OWN)])
    naive = smooth.var(axis=(0, 2, 3)) + LANCZOS_RMS**2 * (TARGET**2 - OWN**2)
    assert (naive / (LANCZOS_RMS * TARGET) ** 2 < 0.95).all()
    seeing_only = degrade.degrade_stamps(draw_sky(ids, OWN), own, alone, ids, 1)[..., 10:-10, 10:-10]
    assert np.abs(seeing_only.var(axis=(0, 2, 3)) / (LANCZOS_RMS * OWN) ** 2 - 1).max() < 0.015


def test_photon_noise_of_the_galaxy_is_brought_along():
    ids, size, gain, lower = np.arange(250), 65, 4000.0, 1500.0
    y, x = np.indices((size, size)) - size // 2
    galaxy = 2.0 * np.exp(-0.5 * (x**2 + y**2) / 9.0**2)
    light = np.broadcast_to(galaxy, (len(ids), 3, size, size))
    images = light + draw_noise(ids, np.sqrt(light / gain + OWN[None, :, None, None] ** 2), 5, "test/photons")
    own, target = conditions(len(ids), FWHM, OWN), conditions(len(ids), WIDER, TARGET)
    pair = [np.full((len(ids), 3), g) for g in (gain, lower)]
    out = degrade.degrade_stamps(images, own, target, ids, 1, gains=pair)
    plain = degrade.degrade_stamps(images, own, target, ids, 1)
    kernel = degrade.make_kernel(own, target, 0, np.hypot(*degrade.make_frequencies(degrade.padded_size(size))))
    smooth = degrade.filter_stamp(light[0], kernel)[0]
    wanted = LANCZOS_RMS**2 * (TARGET[:, None, None] ** 2 + smooth / lower)
    ratio, short = out.var(axis=0) / wanted, plain.var(axis=0) / wanted
    for box in (np.s_[:, 22:43, 22:43], np.s_[:, 12:53, 12:53]):
        assert np.abs(ratio[box].mean(axis=(1, 2)) - 1).max() < 0.02
        assert (short[box].mean(axis=(1, 2)) < 0.85).all()


def test_rows_are_pure_functions_of_their_id():
    ids = np.array([4, 9, 2, 7])
    sky = draw_sky(ids, OWN)
    own, target = conditions(4, FWHM, OWN), conditions(4, WIDER, TARGET)
    whole = degrade.degrade_stamps(sky, own, target, ids, 1)
    order = np.array([2, 0, 3, 1])
    assert np.array_equal(degrade.degrade_stamps(sky[order], own, target, ids[order], 1), whole[order])
    one = degrade.degrade_stamps(sky[1:2], conditions(1, FWHM, OWN), conditions(1, WIDER, TARGET), ids[1:2], 1)
    assert np.array_equal(one[0], whole[1])
    assert not np.array_equal(degrade.degrade_stamps(sky, own, target, ids, 2), whole)


def test_own_conditions_return_the_same_bits_band_by_band():
    ids = np.arange(2)
    sky = draw_sky(ids, OWN)
    sky[0, 0, 3, 3] = np.nan
    own = conditions(2, FWHM, OWN)
    assert degrade.degrade_stamps(sky, own, own, ids, 1).tobytes() == sky.tobytes()
    partly = conditions(2, [1.1, 1.3, 0.85], OWN)
    out = degrade.degrade_stamps(sky, own, partly, ids, 1)
    assert out[:, [0, 2]].tobytes() == sky[:, [0, 2]].tobytes() and not np.array_equal(out[:, 1], sky[:, 1])


def test_pixels_without_data_stay_without_data():
    ids = [0]
    sky = draw_sky(ids, OWN) + 0.5
    sky[0, :, :6], sky[0, 1, 50, 50] = 0.0, np.nan
    out = degrade.degrade_stamps(sky, conditions(1, FWHM, OWN), conditions(1, WIDER, TARGET), ids, 1)
    assert (out[0, :, :6] == 0).all() and np.isnan(out[0, 1, 50, 50]) and np.isnan(out).sum() == 1
    assert np.abs(out[0, 0, 6:12].mean() - 0.5) < 0.01  # the gap does not pull its neighbours down
    sky[0, 2] = 0.0
    with pytest.raises(UserError, match="injection 0: a band holds no data"):
        degrade.degrade_stamps(sky, conditions(1, FWHM, OWN), conditions(1, WIDER, TARGET), ids, 1)


def test_it_refuses_to_sharpen_and_to_deepen():
    ids, sky = [11, 12], draw_sky([11, 12], OWN)
    own = conditions(2, FWHM, OWN)
    sharper, deeper = conditions(2, WIDER, TARGET), conditions(2, WIDER, TARGET)
    sharper.fwhm[1, 2], deeper.sigma[1, 1] = 0.8, 0.005
    for target, words in (
        (sharper, r"injection 12: target seeing 0.800 arcsec in z is sharper than the host's 0.850"),
        (deeper, r"injection 12: target depth .* mag in r is deeper than the host allows"),
        (conditions(2, FWHM * 1.02, TARGET, 2.5), r"injection 11: the target PSF \(beta 2.5\) has a sharper core"),
        (conditions(2, WIDER, TARGET * np.nan), r"injection 11: seeing or noise in g is not a positive number"),
    ):
        with pytest.raises(UserError, match=words):
            degrade.degrade_stamps(sky, own, target, ids, 1)
        refused = int(words[10:12]) - 11
        assert not degrade.find_degradable(own, target)[refused]
    assert degrade.find_degradable(own, sharper).tolist() == [True, False]
    assert degrade.find_degradable(own, own).all() and degrade.find_degradable(own, conditions(2, WIDER, TARGET)).all()
    with pytest.raises(UserError, match="expected"):
        degrade.degrade_stamps(sky[:1], own, own, ids, 1)


def test_conditions_and_columns_of_the_target():
    """Depth in mag -> sigma_pix at the target's seeing; the degraded rows describe the degraded stamps."""
    rows = pd.DataFrame({"host_index": [40, 41]})
    for band in BANDS:
        rows[f"psfsize_{band}"], rows[f"psfdepth_{band}"] = 1.1, photometry.depth_to_ivar(24.5)
        rows[f"exptime_{band}"], rows[f"depth_{band}"] = 300.0, 24.5
    psfsize, depth = np.full((2, 3), 1.5), np.full((2, 3), 23.8)
    out = degrade.degrade_hosts(rows, psfsize, depth)
    assert out["parent_index"].tolist() == [40, 41] and out["host_index"].tolist() == [0, 1]
    target = degrade.make_conditions(psfsize, photometry.depth_to_ivar(depth), [2.5, 4.5])
    for index, band in enumerate(BANDS):
        sigma = photometry.depth_to_sigma(out[f"psfdepth_{band}"], out[f"psfsize_{band}"])
        assert np.allclose(sigma, target.sigma[:, index])
        assert np.allclose(photometry.ivar_to_depth(photometry.sigma_to_depth(sigma, 1.5)), 23.8)
        assert (out[f"depth_{band}"] == 23.8).all()
        # 0.7 mag and the wider PSF: sigma_pix grows by 10^0.28 x 1.1 / 1.5, the time falls with its square.
        assert np.allclose(out[f"exptime_{band}"], 300 / (10**0.28 * 1.1 / 1.5) ** 2)
    assert np.allclose(target.fwhm[:, 0], [1.5 / 1.3868, 1.5 / 1.1651], rtol=5e-3)
