"""Transfer functions against image-space profiles: quadrature, direct Fourier sums, lenstronomy's conventions."""

import numpy as np
import pandas as pd
import pytest
import torch
from lenstronomy.LightModel.Profiles.moffat import Moffat
from lenstronomy.Util.param_util import ellipticity2phi_q
from scipy.integrate import quad
from scipy.special import gammaln, j0

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.lensing import psf


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def draw_moffat(x, y, alpha, beta, e1, e2):
    """lenstronomy's round Moffat of unit flux on coordinates stretched along lenstronomy's angle, area kept."""
    phi, q = ellipticity2phi_q(e1, e2)
    along, across = x * np.cos(phi) + y * np.sin(phi), y * np.cos(phi) - x * np.sin(phi)
    value = Moffat().function(along * np.sqrt(q), across / np.sqrt(q), 1.0, alpha, beta)
    # lenstronomy's amplitude is that of the peak.
    return value * (beta - 1) / (np.pi * alpha**2)


def transfer_of(alpha, beta, e1, e2, k, **kwargs):
    shape = [torch.tensor([e], dtype=torch.float64) for e in (e1, e2)]
    radius = torch.full((1, len(BANDS)), alpha, dtype=torch.float64)
    return psf.transfer_psf(k, k, radius, [beta], *shape, **kwargs)[0]


@pytest.mark.parametrize("beta", [2.5, 3.5, 4.5, 3.9])
@pytest.mark.parametrize("e1, e2", [(0.0, 0.0), (0.1, 0.0), (-0.05, 0.12), (0.02, -0.3)])
def test_elliptical_moffat_is_the_fourier_sum_of_its_image(beta, e1, e2):
    alpha, step, half = 2.1, 0.3, 400
    x = np.arange(-half, half + 1) * step
    image = draw_moffat(*np.meshgrid(x, x), alpha, beta, e1, e2) * step**2
    k = np.array([-2.5, -0.7, 0.0, 0.2, 1.1, 3.0])
    wave = np.exp(-1j * k[:, None] * x[None])
    theirs = wave @ image @ wave.T
    ours = transfer_of(alpha, beta, e1, e2, torch.as_tensor(k))[1].numpy()
    lost = ((half * step / alpha) ** 2) ** (1 - beta)  # of the flux outside the grid
    assert np.abs(ours - theirs).max() < 5 * lost + 1e-9


@pytest.mark.parametrize("beta", [1.3, 1.7, 2.3, 2.5, 3.5, 3.9, 4.5, 8.0, 30.0, 100.0])
def test_any_beta_is_the_mixture_of_gaussians_a_moffat_is(beta):
    """(1 + r^2)^-beta is a Gamma mixture of Gaussians, so its transform is one too: quadrature over the mixture."""
    x = np.array([0.0, 1e-9, 1e-3, 0.05, 0.7, 3.0, 12.0, 40.0, 90.0])
    ours = psf.transfer_moffat(torch.as_tensor(x), 1.0, beta).numpy()

    def integrand(log_t, value):
        t = np.exp(log_t)
        return np.exp((beta - 1) * log_t - t - value**2 / (4 * t) - gammaln(beta - 1))

    for value, mine in zip(x, ours, strict=True):
        pieces = [quad(integrand, low, low + 3, args=(value,), epsabs=1e-13)[0] for low in range(-150, 9, 3)]
        assert mine == pytest.approx(sum(pieces), abs=6e-8 if beta == 1.7 else 2e-9)


@pytest.mark.parametrize("beta", [2.5, 3.5, 4.5])
def test_round_trip_of_psfsize_and_the_shape_of_an_elliptical_moffat(beta):
    """psfsize -> FWHM -> transfer function -> image: the image has that FWHM per axis and that psfsize."""
    psfsize, e1 = 1.45, 0.08
    fwhm = float(photometry.psfsize_to_fwhm(psfsize, beta))
    assert photometry.fwhm_to_psfsize(fwhm, beta) == pytest.approx(psfsize)
    alpha, length, step = psf.moffat_alpha(fwhm, beta) / PIXEL_SCALE, 2048, 0.125
    k = torch.as_tensor(2 * np.pi * np.fft.fftfreq(length, step))
    image = np.fft.fftshift(np.fft.ifft2(transfer_of(float(alpha), beta, e1, 0.0, k)[0].numpy()).real)
    assert image.sum() == pytest.approx(1.0, abs=1e-12)
    area = 1.0 / (image**2).sum() * (step * PIXEL_SCALE) ** 2
    assert np.sqrt(area / (4 * np.pi)) * photometry.FWHM_OF_SIGMA == pytest.approx(psfsize, rel=1e-4)
    assert area == pytest.approx(photometry.noise_equivalent_area(psfsize), rel=2e-4)
    q = (1 - e1) / (1 + e1)
    for cut, stretch in ((image[length // 2], q**-0.5), (image[:, length // 2], q**0.5)):
        half = cut[length // 2 :] / cut.max()
        width = 2 * np.interp(-0.5, -half[:400], np.arange(400)) * step * PIXEL_SCALE
        assert width == pytest.approx(fwhm * stretch, rel=1e-3)


def test_gaussian_is_a_gaussian_and_float32_is_close():
    k = torch.linspace(-3, 3, 31, dtype=torch.float64)
    ours = transfer_of(1.7, np.inf, 0.1, 0.0, k)[0]
    q = 0.9 / 1.1
    expected = torch.exp(-0.5 * 1.7**2 * (k[None] ** 2 / q + k[:, None] ** 2 * q))
    assert (ours - expected).abs().max() < 1e-14
    for beta in (2.5, 3.1):
        double = transfer_of(2.0, beta, 0.1, -0.2, k, wings=[True])
        single = psf.transfer_psf(k.float(), k.float(), torch.full((1, 3), 2.0), [beta], torch.tensor([0.1]),
                                  torch.tensor([-0.2]), wings=[True])[0]  # fmt: skip
        assert single.dtype == torch.float32 and (single - double).abs().max() < 1e-6


@pytest.mark.parametrize("band", BANDS)
def test_wings_are_the_hankel_transform_of_their_profile(band):
    frequency = np.array([0.01, 0.05, 0.3, 1.0, 2.5])
    r = np.concatenate([np.linspace(0, 300, 600001), np.linspace(300, 60000, 2000001)[1:]])
    weight = 2 * np.pi * r * psf.wing_profile(r, band)
    theirs = [np.trapezoid(weight * j0(k / PIXEL_SCALE * r), r) for k in frequency]
    ours = psf.transfer_wings(torch.as_tensor(frequency), band).numpy()
    assert np.abs(ours - theirs).max() < 2e-6
    total = psf.transfer_wings(torch.zeros(1, dtype=torch.float64), band)
    assert float(total) == pytest.approx(float(psf.wing_flux(np.inf, band)), rel=1e-12)
    for radius in (2.0, 31.5 * PIXEL_SCALE, 50.0):
        inside = quad(lambda r: 2 * np.pi * r * psf.wing_profile(r, band), 0, radius)[0]
        assert psf.wing_flux(radius, band) == pytest.approx(inside, rel=1e-8)


def test_wings_are_the_surveys_where_the_survey_uses_them():
    r = np.linspace(5, 12, 50)  # arcsec; the survey's core ends at 5 to 6
    for band, amplitude in (("g", 0.00045), ("r", 0.00033)):
        assert np.abs(psf.wing_profile(r, band) * r**2 / amplitude - 1).max() < 0.05
    theirs = 0.0145 * 0.7 / (np.pi * 17.65**2) * (1 + r**2 / 17.65**2) ** -1.7
    assert np.allclose(psf.wing_profile(r, "z"), theirs, rtol=1e-12)
    shares = [float(psf.wing_flux(radius, b)) for radius in (np.inf, 31.5 * PIXEL_SCALE) for b in BANDS]
    assert np.allclose(shares, [0.0116, 0.0085, 0.0145, 0.0060, 0.0044, 0.0019], atol=5e-5)
    with pytest.raises(UserError, match="band 'Y'"):
        psf.transfer_wings(torch.ones(2), "Y")


def test_wings_keep_unit_flux_and_only_touch_their_rows():
    k = torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64)
    radius = torch.full((2, 3), 2.2, dtype=torch.float64)
    mixed = psf.transfer_psf(k, k, radius, [3.5, 3.5], wings=[False, True])
    plain = psf.transfer_psf(k, k, radius, [3.5, 3.5])
    assert torch.equal(mixed[0], plain[0]) and not torch.equal(mixed[1], plain[1])
    assert torch.allclose(mixed[:, :, 0, 0], torch.ones((2, 3), dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("beta", [2.5, 4.5, 3.3, np.inf])
def test_narrowed_core_with_wings_has_the_psfsize_asked_for(beta):
    """By quadrature of the squared profile in image space."""
    psfsize = np.array([1.4, 1.2, 1.0])
    fwhm = photometry.psfsize_to_fwhm(psfsize, beta)
    alpha = fwhm / photometry.FWHM_OF_SIGMA if np.isinf(beta) else psf.moffat_alpha(fwhm, beta)
    narrow = psf.narrow_core((alpha / PIXEL_SCALE)[None], np.array([beta]))[0] * PIXEL_SCALE
    for size, a, band in zip(psfsize, narrow, BANDS, strict=True):

        def profile(r, a=a, band=band):
            shape = np.exp(-0.5 * (r / a) ** 2) / 2 if np.isinf(beta) else (beta - 1) * (1 + (r / a) ** 2) ** -beta
            return (1 - psf.wing_flux(np.inf, band)) * shape / (np.pi * a**2) + psf.wing_profile(r, band)

        square = sum(quad(lambda r: 2 * np.pi * r * profile(r) ** 2, *ends)[0] for ends in ((0, 3), (3, 40), (40, 900)))
        assert np.sqrt(1 / square / (4 * np.pi)) * photometry.FWHM_OF_SIGMA == pytest.approx(size, rel=1e-5)


def test_brick_average():
    hosts = pd.DataFrame({"galaxy_id": list("abc"), "brickname": ["p", "q", "p"]})
    for band, values in zip(BANDS, ([1.0, 2.0, 1.4], [1.1, 1.2, 1.3], [0.9, 1.0, 0.8]), strict=True):
        hosts[f"psfsize_{band}"] = values
    assert np.allclose(psf.average_psfsize(hosts), [[1.2, 1.2, 0.85], [2.0, 1.2, 1.0], [1.2, 1.2, 0.85]])
    assert np.allclose(psf.average_psfsize(hosts, ("r",))[:, 0], [1.2, 1.2, 1.2])
    with pytest.raises(UserError, match="host b: psfsize_r"):
        psf.average_psfsize(hosts.assign(psfsize_r=[1.0, 0.0, 1.0]))
    with pytest.raises(UserError, match="brickname"):
        psf.average_psfsize(hosts.drop(columns="brickname"))


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("beta", [3.5, 4.5])
def test_image_of_the_analytic_psf_gives_its_transfer_function(factor, beta):
    """Sampling folds the frequencies: an image's transform is the sum of the transfer function's replicas, exactly."""
    period, alpha, size = 160, 4.2, 120 * factor + 1
    x = (np.arange(size) - size // 2) / factor
    image = draw_moffat(*np.meshgrid(x, x), alpha, beta, 0.07, -0.04)
    ours = psf.transfer_image(psf.check_kernel(image[None, None], size), period, factor)[0, 0].numpy()
    step = 2 * np.pi / period
    kx, ky = np.arange(period) * step, np.fft.fftfreq(2 * period, 1 / (2 * period)) * step
    shape = [torch.tensor([e], dtype=torch.float64) for e in (0.07, -0.04)]
    radius, replicas = torch.full((1, 1), alpha, dtype=torch.float64), 2 * np.pi * factor * np.arange(-2, 3)
    folded = sum(
        psf.transfer_psf(torch.as_tensor(kx + a), torch.as_tensor(ky + b), radius, [beta], *shape)[0, 0].numpy()
        for a in replicas
        for b in replicas
    )
    known, lost = ours != 0, ((60 / alpha) ** 2) ** (1 - beta)  # lost: the flux outside the image
    assert known.mean() == pytest.approx(0.25 if factor == 1 else 1.0, abs=0.01)
    # The image is normalised by the sum of its samples, which is its folded zero frequency.
    assert np.abs(ours - folded / folded[0, 0])[known].max() < 2 * lost + 1e-12


def test_bad_images_are_refused_in_one_line():
    bad, dark = np.ones((2, 5, 5)), np.ones((2, 5, 5))
    bad[1, 2, 2], dark[1] = np.nan, -1.0
    cases = [(np.ones((66, 66)), "odd"), (np.ones((5, 7)), "odd"), (np.ones(5), "odd"), (np.ones((67, 67)), "larger"),
             (bad, "injection 8: .*not finite"), (dark, "injection 8: .*without flux")]  # fmt: skip
    for kernel, word in cases:
        with pytest.raises(UserError, match=word) as error:
            psf.check_kernel(kernel, 65, ids=[7, 8])
        assert "\n" not in str(error.value)
    assert np.allclose(psf.check_kernel(np.full((3, 3), 2.0), 65), 1 / 9)
