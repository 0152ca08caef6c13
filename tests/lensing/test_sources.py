"""Sources against lenstronomy, scipy and closed forms."""

import numpy as np
import pytest
import torch
from astropy.modeling.models import Sersic2D
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.integrate import dblquad
from scipy.ndimage import map_coordinates
from scipy.special import gamma, kv

from lensaudit.artifacts import UserError
from lensaudit.lensing import compiled_sources, sources


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_one(x=0.0, y=0.0, R=0.3, n=1.0, q=0.6, phi=0.4, gradient=0.0):
    shape = [np.atleast_1d(float(v)) for v in (x, y, R, n, q, phi)]
    components, _ = sources.make_components(*shape, dtype=torch.float64, gradient=np.atleast_1d(gradient))
    return components, compiled_sources.pack_components(components)[0]


@pytest.mark.parametrize("n", [0.5, 1.0, 0.8, 2.5, 4.0])
@pytest.mark.parametrize("gradient", [0.0, 0.6, -0.9])
def test_compiled_profile_is_the_tensor_one(n, gradient):
    components, row = make_one(x=0.11, y=-0.2, n=n, gradient=gradient)
    x, y = np.random.default_rng(1).uniform(-1.5, 1.5, (2, 300))
    theirs = sources.evaluate_sersic(torch.as_tensor(x), torch.as_tensor(y), components).numpy()
    ours = [compiled_sources.evaluate_profile(a - row[0], b - row[1], row) for a, b in zip(x, y, strict=True)]
    assert np.allclose(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [0.5, 1.0, 1.7, 4.0])
def test_compiled_profile_is_astropys_and_lenstronomys(n):
    R, q, phi = 0.4, 0.7, 1.1
    _, row = make_one(x=0.1, y=-0.05, R=R, n=n, q=q, phi=phi)
    x, y = np.random.default_rng(2).uniform(-1.0, 1.0, (2, 200))
    ours = np.array([compiled_sources.evaluate_profile(a - 0.1, b + 0.05, row) for a, b in zip(x, y, strict=True)])
    at_R = row[7] * np.exp(-row[5])
    # astropy measures the radius along the major axis and takes b_n exactly, as we do.
    model = Sersic2D(amplitude=at_R, r_eff=R / np.sqrt(q), n=n, x_0=0.1, y_0=-0.05, ellip=1.0 - q, theta=phi)
    assert np.allclose(ours, model(x, y), rtol=1e-10)
    # lenstronomy's b_n = 1.9992 n - 0.3271 is the same profile at another radius.
    R_theirs = R * ((1.9992 * n - 0.3271) / row[5]) ** n
    e1, e2 = phi_q2_ellipticity(phi, q)
    kwargs = {"amp": 1.0, "R_sersic": R_theirs, "n_sersic": n, "e1": e1, "e2": e2, "center_x": 0.1, "center_y": -0.05}
    theirs = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(x, y, [kwargs])
    assert np.allclose(ours, theirs * row[7] * np.exp(-(1.9992 * n - 0.3271)), rtol=1e-6)


@pytest.mark.parametrize("n, q, gradient", [(0.5, 0.5, 0.9), (1.0, 0.7, -0.5), (1.0, 0.3, 0.99), (1.6, 0.8, 0.7)])
def test_gradient_keeps_the_flux(n, q, gradient):
    """Integrated by scipy over elliptical annuli of the plane, quadrant pairs included."""
    R, phi = 0.3, 0.7
    _, row = make_one(R=R, n=n, q=q, phi=phi, gradient=gradient)
    cos, sin = np.cos(phi), np.sin(phi)

    def integrand(t, r):
        major, minor = R * r * np.cos(t) / np.sqrt(q), R * r * np.sin(t) * np.sqrt(q)
        return R * R * r * compiled_sources.evaluate_profile(major * cos - minor * sin, major * sin + minor * cos, row)

    limit = float(sources.sersic_extent(n, tail=1e-9))
    flux, _ = dblquad(integrand, 0.0, limit, 0.0, 2.0 * np.pi, epsabs=1e-8, epsrel=1e-8)
    assert flux == pytest.approx(1.0, abs=1e-7)


def test_gradient_is_along_the_major_axis_and_as_stated():
    R, phi, gradient = 0.3, 0.9, 0.4
    _, tilted = make_one(R=R, phi=phi, gradient=gradient)
    _, plain = make_one(R=R, phi=phi)
    for along in (-0.5, 0.2, 0.7):
        point = along * np.cos(phi), along * np.sin(phi)
        ratio = compiled_sources.evaluate_profile(*point, tilted) / compiled_sources.evaluate_profile(*point, plain)
        assert ratio == pytest.approx(1.0 + gradient * np.tanh(along / R), rel=1e-12)
        point = -along * np.sin(phi), along * np.cos(phi)
        ratio = compiled_sources.evaluate_profile(*point, tilted) / compiled_sources.evaluate_profile(*point, plain)
        assert ratio == pytest.approx(1.0, rel=1e-12)


def test_no_gradient_leaves_no_trace():
    """Symmetric sources carry no further fields, and a zero among others changes no bit."""
    ones = np.ones(2)
    shape = (0 * ones, 0 * ones, 0.3 * ones, ones, 0.7 * ones, 0.2 * ones)
    plain, _ = sources.make_components(*shape)
    zero, _ = sources.make_components(*shape, gradient=np.zeros(2))
    mixed, _ = sources.make_components(*shape, gradient=np.array([0.0, 0.5]))
    assert "g" not in plain and "g" not in zero and mixed["g"].tolist() == [0.0, 0.5]
    x, y = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(1))
    without, beside = (sources.evaluate_sersic(x, y, c) for c in (plain, mixed))
    assert torch.equal(without[:, 0], beside[:, 0]) and not torch.equal(without[:, 1], beside[:, 1])


@pytest.mark.parametrize("value", [1.0, -1.2, np.nan])
def test_bad_gradients_are_refused(value):
    with pytest.raises(UserError, match="gradient: row 0"):
        make_one(gradient=value)


def make_bank(size=41, n_images=2):
    """Lopsided smooth images with their centres off the middle."""
    v, u = np.indices((size, size))
    stamps, centre = [], []
    for k in range(n_images):
        c, r = 19.3 + 1.2 * k, 21.6 - 0.9 * k
        a, b = u - c, v - r
        image = np.exp(-(a * a + a * b + 1.5 * b * b) / (12.0 + 3 * k)) * (1 + 0.3 * np.tanh(0.5 * a - 0.2 * b))
        image *= np.hypot(a, b) < 15
        stamps.append(image / image.sum())
        centre.append((c, r))
    return stamps, sources.make_image_bank(np.stack(stamps), centre, np.array([3.0, 3.4])[:n_images])


def place_image(bank, k=0, x=0.0, y=0.0, R=0.3, phi=0.0, dtype=torch.float64):
    one = np.ones(1)
    return sources.make_components(x * one, y * one, R * one, one, 0.6 * one, phi * one, dtype=dtype,
                                   bank_index=np.array([k]), bank=bank)[0]  # fmt: skip


def evaluate_everywhere(components, bank, x, y):
    coefficients = torch.as_tensor(bank.coefficients)
    return sources.evaluate_image(torch.as_tensor(x), torch.as_tensor(y), components, coefficients).numpy()


def test_interpolation_is_scipys():
    """Inside, on the edge and outside; the pixels themselves come back."""
    _, bank = make_bank()
    image = bank.coefficients[0].astype(np.float64)
    size = image.shape[0]
    u, v = np.random.default_rng(3).uniform(-4, size + 3, (2, 2000))
    theirs = map_coordinates(np.pad(image, 6), [v + 6, u + 6], order=3, prefilter=False, mode="constant")
    ours = [compiled_sources.interpolate_image(bank.coefficients[0], a, b) for a, b in zip(u, v, strict=True)]
    assert np.abs(ours - theirs).max() < 1e-12
    assert compiled_sources.interpolate_image(bank.coefficients[0], np.nan, 3.0) == 0.0


def test_interpolation_goes_through_the_pixels_and_is_scipys_spline():
    stamps, bank = make_bank()
    u, v = np.random.default_rng(4).uniform(2, 38, (2, 500))
    ours = [compiled_sources.interpolate_image(bank.coefficients[0], a + 8, b + 8) for a, b in zip(u, v, strict=True)]
    theirs = map_coordinates(np.pad(stamps[0], 20), [v + 20, u + 20], order=3)
    assert np.abs(ours - theirs).max() < 1e-6 * stamps[0].max()
    nodes = [[compiled_sources.interpolate_image(bank.coefficients[0], j + 8.0, i + 8.0) for j in range(41)]
             for i in range(41)]  # fmt: skip
    assert np.abs(nodes - stamps[0]).max() < 1e-6 * stamps[0].max()


@pytest.mark.parametrize("k, phi, R", [(0, 0.0, 0.3), (1, 0.7, 0.15), (0, 2.6, 0.5)])
def test_tensor_and_compiled_images_agree(k, phi, R):
    _, bank = make_bank()
    components = place_image(bank, k, x=0.2, y=-0.1, R=R, phi=phi)
    x, y = np.random.default_rng(5).uniform(-3, 3, (2, 3000))
    theirs = evaluate_everywhere(components, bank, x, y)
    row = compiled_sources.pack_components(components)[0]
    where = compiled_sources.pack_placements(components)[0]
    ours = [compiled_sources.evaluate_stamp(a - row[0], b - row[1], row[7], where, bank.coefficients)
            for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()
    assert (theirs != 0).sum() > 100


@pytest.mark.parametrize("phi", [0.0, 0.5, 4.0])
def test_image_is_lenstronomys_interpol(phi):
    """A stamp given to INTERPOL as flux / arcsec^2: same place, turn, scale and units.

    INTERPOL is bilinear between pixels, so the two are compared where no interpolation is needed: at pixels' centres.
    """
    stamps, bank = make_bank()
    R, (c, r) = 0.3, bank.centre[1] - 8
    scale = R / bank.half_light[1]
    components = place_image(bank, 1, x=0.1, y=0.2, R=R, phi=phi)

    def place(column, row):
        a, b = (column - c) * scale, (row - r) * scale
        return 0.1 + a * np.cos(phi) - b * np.sin(phi), 0.2 + a * np.sin(phi) + b * np.cos(phi)

    middle = place(20, 20)  # INTERPOL turns about the middle of the array, we about the galaxy's centre
    kwargs = {"image": stamps[1] / scale**2, "amp": 1.0, "center_x": middle[0], "center_y": middle[1],
              "phi_G": phi, "scale": scale}  # fmt: skip
    x, y = place(*np.random.default_rng(6).integers(5, 36, (2, 300)))
    theirs = LightModel(["INTERPOL"]).surface_brightness(x, y, [kwargs])
    ours = evaluate_everywhere(components, bank, x, y)
    assert np.abs(ours - theirs).max() < 1e-6 * theirs.max()


def test_image_keeps_unit_flux_and_its_half_light_radius():
    stamps, bank = make_bank()
    v, u = np.indices(stamps[0].shape)
    distance = np.hypot(u - bank.centre[0, 0] + 8, v - bank.centre[0, 1] + 8).ravel()
    order = np.argsort(distance)
    half = np.interp(0.5, np.cumsum(stamps[0].ravel()[order]), distance[order])
    bank = sources.make_image_bank(np.stack(stamps), bank.centre - 8, np.array([half, half]))
    components = place_image(bank, 0, x=0.1, R=0.4, phi=0.3)
    step = 0.01
    x, y = np.meshgrid((np.arange(700) - 350) * step, (np.arange(700) - 350) * step)
    light = evaluate_everywhere(components, bank, x, y) * step**2
    assert light.sum() == pytest.approx(1.0, abs=1e-5)
    assert light[np.hypot(x - 0.1, y) < 0.4].sum() == pytest.approx(0.5, abs=0.02)
    assert np.all(light[np.hypot(x - 0.1, y) > float(components["extent"])] ** 2 < (1e-6 * light.max()) ** 2)


def test_image_and_sersic_sources_share_a_batch():
    _, bank = make_bank()
    ones = np.ones(3)
    shape = (0 * ones, 0 * ones, 0.3 * ones, ones, 0.7 * ones, 0.2 * ones)
    clumps = sources.place_clumps(np.full((3, 24), 0.5), 0.3 * ones, ones, 0 * ones, np.array([0, 0, 2]))
    mixed, owner = sources.make_components(*shape, clumps, bank_index=np.array([-1, 1, -1]), bank=bank)
    plain, _ = sources.make_components(*shape, clumps)
    assert mixed["image"].tolist() == [-1, 1, -1, -1, -1] and owner.tolist() == [2]
    for name, values in plain.items():
        assert torch.equal(values[[0, 2, 3, 4]], mixed[name][[0, 2, 3, 4]])
    assert "image" not in sources.make_components(*shape, bank_index=-ones)[0]


def test_bad_bank_indices_are_refused():
    _, bank = make_bank()
    with pytest.raises(UserError, match="bank_index: row 0 holds 2"):
        place_image(bank, 2)
    with pytest.raises(UserError, match="no bank"):
        place_image(None, 0)


@pytest.mark.parametrize("beta, fwhm", [(2.5, 5.0), (3.5, 4.5), (4.5, 4.0)])
def test_point_images_are_shifted_moffats(beta, fwhm):
    """Point spectra x the Moffat's transform, folded to pixels, against the closed form at the pixels' centres."""
    size, period = 41, 320  # the period is that long because a Moffat of beta 2.5 comes around as its own neighbour
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    x = np.array([[20.0, 17.3, 24.9, np.nan], [20.25, 13.8, 0.0, 0.0]])
    y = np.array([[20.0, 25.6, 15.2, np.nan], [18.7, 22.2, 0.0, 0.0]])
    mu = np.array([[4.0, -2.5, 0.7, 0.0], [1.3, -0.4, 0.0, 0.0]])
    k = torch.as_tensor(2 * np.pi * np.arange(-period, period) / period)
    terms = sources.point_terms(*(torch.as_tensor(t) for t in (x, y, mu)), k, k).numpy()
    radius = np.maximum(np.hypot(k.numpy()[:, None], k.numpy()[None]), 1e-9) * alpha
    transfer = 2 * (radius / 2) ** (beta - 1) * kv(beta - 1, radius) / gamma(beta - 1)
    wave = np.exp(1j * np.outer(np.arange(size), k.numpy()))
    ours = np.einsum("ra,nab,cb->nrc", wave, terms * transfer, wave, optimize=True).real / period**2
    rows, columns = np.indices((size, size))
    for n in range(2):
        theirs = np.zeros((size, size))
        for i in np.flatnonzero(mu[n]):
            d2 = (columns - x[n, i]) ** 2 + (rows - y[n, i]) ** 2
            theirs += abs(mu[n, i]) * (beta - 1) / (np.pi * alpha**2) * (1 + d2 / alpha**2) ** -beta
        assert np.abs(ours[n] - theirs).max() < 1e-4 * theirs.max()


def test_without_numba_the_numbers_are_the_same():
    _, bank = make_bank()
    _, row = make_one(n=1.4, gradient=0.3)
    for function, arguments in ((compiled_sources.evaluate_profile, (0.12, -0.3, row)),
                                (compiled_sources.interpolate_image, (bank.coefficients[0], 27.3, 29.9)),
                                (compiled_sources.interpolate_image, (bank.coefficients[0], -0.7, 56.2))):  # fmt: skip
        plain = getattr(function, "py_func", function)
        assert plain(*arguments) == pytest.approx(function(*arguments), rel=1e-12, abs=1e-18)
