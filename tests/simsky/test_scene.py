"""Stamps: profiles against astropy, noise against the Lanczos kernel, the arcs against lenstronomy."""

import numpy as np
import pytest
from astropy.modeling.models import Sersic2D
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from scipy import fft

from lensaudit.simsky import lenses, physics, scene
from lensaudit.simsky.conditions import make_psf

ROW = {
    "theta_E": 1.2,
    "q": 0.75,
    "phi": 0.6,
    "gamma1": 0.03,
    "gamma2": -0.02,
    "slope": 2.1,
    "source_x": 0.15,
    "source_y": -0.1,
    "source_R": 0.3,
    "source_q": 0.7,
    "source_phi": 1.0,
    "source_key": 12345,
    "source_n": 1.0,
}


def test_lanczos_noise_has_the_published_correlations():
    noise = np.concatenate([scene.add_noise(np.random.default_rng(i), np.zeros((3, 101, 101), np.float32), [1.0] * 3,
                                            [1e4] * 3) for i in range(40)])  # fmt: skip
    variance = noise.var()
    assert variance == pytest.approx(0.80, abs=0.01)
    for (dy, dx), value in {(0, 1): 0.11, (1, 0): 0.11, (1, 1): 0.013, (0, 2): -0.076}.items():
        product = noise[:, dy:, dx:] * noise[:, : 101 - dy, : 101 - dx]
        assert product.mean() / variance == pytest.approx(value, abs=0.006)


def test_photon_noise_has_the_true_gain():
    image, gain = np.full((1, 101, 101), 2.0, np.float32), 3.2e3
    noise = np.stack([scene.add_noise(np.random.default_rng(i), image, [0.01], [gain])[0] for i in range(60)])
    assert noise.var() == pytest.approx((0.01**2 + 2.0 / gain) * 0.798, rel=0.02)


@pytest.mark.parametrize("n, radius, q, pa", [(1.0, 4.0, 0.6, 0.5), (4.0, 3.0, 0.7, 2.0), (2.5, 2.0, 0.45, 1.0)])
def test_sersic_against_astropy(n, radius, q, pa):
    # astropy's profile sampled 12 times finer, convolved as a continuous function and read at pixel centres.
    fine, size = 12, scene.GRID
    axis = (np.arange(size * fine) - (size * fine - 1) / 2) / fine
    y, x = np.meshgrid(axis, axis, indexing="ij")
    model = Sersic2D(1.0, radius / np.sqrt(q), n, 0.0, 0.0, 1 - q, pa)(x, y)
    keep = np.r_[0 : size // 2, -size // 2 : 0]
    k = 2 * np.pi * np.fft.fftfreq(size)
    transform = fft.fft2(model)[np.ix_(keep, keep)] * np.exp(-1j * k * axis[0])[:, None] * np.exp(-1j * k * axis[0])
    psf = make_psf(1.0, 3.0, 0.02, 0.01, "r", size)
    expected = fft.ifft2(transform * fft.fft2(np.fft.ifftshift(psf))).real
    expected = np.roll(expected, (50, 50), (0, 1))[:101, :101]
    drawn = scene.draw_sersic(size, 50, 50, radius, q, pa, n)
    image = scene.convolve(drawn[None], scene.transform_psf(psf)[None])[0]
    image, expected = image / image.max(), expected / expected.max()
    assert np.abs(image - expected).max() < 5e-3


def test_sersic_keeps_flux_and_half_light():
    drawn = scene.draw_sersic(288, 50, 50, 6.0, 1.0, 0.0, 1.0)
    assert drawn[0, 0].real == pytest.approx(1.0, abs=1e-4)
    point = np.ones_like(drawn)[None]
    image = scene.convolve(drawn[None], point)[0]
    y, x = np.mgrid[:101, :101] - 50
    assert image[np.hypot(x, y) < 6.0].sum() == pytest.approx(0.5, abs=0.01)


def test_image_turns_counter_clockwise():
    image = scene.convolve(scene.draw_sersic(144, 50, 50, 5.0, 0.3, 0.5, 1.0)[None], np.ones((1, 144, 73)))[0]
    y, x = np.mgrid[:101, :101] - 50
    angle = 0.5 * np.arctan2(2 * np.sum(image * x * y), np.sum(image * (x**2 - y**2)))
    assert angle == pytest.approx(0.5, abs=0.02)


def test_gaussians_sum_and_sit_where_told():
    flux = np.array([[1.0, 2.0], [0.5, 0.0]])
    image = scene.convolve(
        scene.draw_gaussians(144, [30.0, 70.5], [40.0, 60.0], [1.5, 2.0], flux), np.ones((2, 144, 73))
    )
    assert image.sum(axis=(1, 2)) == pytest.approx([3.0, 0.5], rel=1e-4)
    assert np.unravel_index(image[1].argmax(), (101, 101)) == (40, 30)


def test_lensed_flux_is_magnification_times_source():
    # The oracle: lenstronomy alone, on a wide and fine grid, a model of its own for each component.
    arcs = lenses.draw_arcs(ROW, scene.GRID, 50.0, 50.0)
    step = 0.02
    axis = np.arange(-4, 4, step) + step / 2
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    model = LensModel(["EPL", "SHEAR"])
    bx, by = model.ray_shooting(x, y, lenses.lens_arguments(ROW))
    images = lenses.make_source(ROW["source_key"], ROW["source_R"], ROW["source_q"], ROW["source_phi"])
    for k in range(2):
        keywords = {
            "image": images[k],
            "amp": 1.0,
            "center_x": ROW["source_x"],
            "center_y": ROW["source_y"],
            "phi_G": 0.0,
            "scale": images[2],
        }
        light = LightModel(["INTERPOL"]).surface_brightness(bx, by, [keywords])
        assert arcs[k, 0, 0].real == pytest.approx(light.sum() * step**2, rel=0.01)


def test_arcs_against_lenstronomy_pixel_by_pixel():
    psf = make_psf(1.0, 3.0, 0.0, 0.0, "r", scene.GRID)
    arcs = lenses.draw_arcs(ROW, scene.GRID, 50.0, 50.0)[:1]
    image = scene.convolve(arcs, scene.transform_psf(psf)[None])[0]
    fine, n = 9, 45
    axis = (np.arange(n * fine) - (n * fine - 1) / 2) / fine * physics.PIXEL
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    bx, by = LensModel(["EPL", "SHEAR"]).ray_shooting(x, y, lenses.lens_arguments(ROW))
    smooth, _, scale = lenses.make_source(ROW["source_key"], ROW["source_R"], ROW["source_q"], ROW["source_phi"])
    light = LightModel(["INTERPOL"]).surface_brightness(
        bx, by, [{"image": smooth, "amp": 1.0, "center_x": 0.15, "center_y": -0.1, "phi_G": 0.0, "scale": scale}]
    )
    samples = light.reshape(n * fine, -1) * (physics.PIXEL / fine) ** 2
    start = 50.0 + axis[0] / physics.PIXEL
    oracle = scene.convolve(scene.draw_samples(scene.GRID, samples, start, start, 1 / fine)[None],
                            scene.transform_psf(psf)[None])[0]  # fmt: skip
    assert np.abs(image - oracle).max() < 0.02 * oracle.max()


def test_source_image_is_flux_per_square_arcsec():
    # Passing flux per pixel was a thousandfold error once: the image times its pixel area must sum to one.
    for image in lenses.make_source(7, 0.3, 0.8, 0.2)[:2]:
        scale = lenses.make_source(7, 0.3, 0.8, 0.2)[2]
        assert image.sum() * scale**2 == pytest.approx(1.0, rel=1e-9)
        assert image.sum() > 50


def test_interpol_is_not_reused_between_sources():
    first, second = (lenses.make_source(key, 0.3, 0.8, 0.2) for key in (1, 2))
    x = np.linspace(-1.5, 1.5, 400)
    alone = lenses.trace_pixels(ROW, second[2], x.shape, x, 0.3 * x, (second[1],))[0]
    lenses.trace_pixels(ROW, first[2], x.shape, x, 0.3 * x, (first[1],))
    again = lenses.trace_pixels(ROW, second[2], x.shape, x, 0.3 * x, (first[1], second[1]))[1]
    assert np.array_equal(alone, again)
    # The trap itself: one model asked for two images answers with the first.
    model = LightModel(["INTERPOL"])
    keywords = {"amp": 1.0, "center_x": 0.0, "center_y": 0.0, "phi_G": 0.0, "scale": first[2]}
    a = model.surface_brightness(x, x, [{"image": first[1], **keywords}])
    b = model.surface_brightness(x, x, [{"image": second[1], **keywords}])
    assert np.array_equal(a, b)


def test_structured_source_is_not_smooth():
    smooth, clumpy, _ = lenses.make_source(3, 0.3, 0.8, 0.2)
    assert np.corrcoef(smooth.ravel(), clumpy.ravel())[0, 1] < 0.95
    assert np.array_equal(lenses.make_source(3, 0.3, 0.8, 0.2)[1], clumpy)
