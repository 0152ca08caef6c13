"""Lensing against lenstronomy, closed forms and itself."""

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.signal import fftconvolve
from scipy.special import j0

from lensaudit.artifacts import UserError
from lensaudit.constants import PIXEL_SCALE
from lensaudit.lensing import mass, psf, render, sample, sources

SIZE = 65


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def tensors(dtype=torch.float64, **values):
    return {k: torch.as_tensor(np.atleast_1d(v), dtype=dtype) for k, v in values.items()}


def lens_kwargs(lens, i=0):
    e1, e2 = phi_q2_ellipticity(float(lens["phi"][i]), float(lens["q"][i]))
    return [{"theta_E": float(lens["theta_E"][i]), "e1": e1, "e2": e2, "center_x": 0, "center_y": 0},
            {"gamma1": float(lens["gamma1"][i]), "gamma2": float(lens["gamma2"][i])}]  # fmt: skip


def render_one(theta_E=1.2, q=0.7, phi=0.5, gamma1=0.03, gamma2=-0.02, x=0.1, y=0.05, R=0.2, n=1.0, source_q=0.7,
               source_phi=1.0, flux=1.0, fwhm=1.1, beta=3.5, dtype=torch.float64, **kwargs):  # fmt: skip
    lens = tensors(dtype, theta_E=theta_E, q=q, phi=phi, gamma1=gamma1, gamma2=gamma2)
    shape = [np.atleast_1d(v) for v in (x, y, R, n, source_q, source_phi)]
    components, owner = sources.make_components(*shape, dtype=dtype)
    weights = (torch.full((1, 1), flux, dtype=dtype), torch.zeros((0, 1), dtype=dtype), torch.as_tensor(owner))
    alpha = torch.full((1, 1), float(psf.moffat_alpha(fwhm, beta)) / PIXEL_SCALE, dtype=dtype)
    transfer = render.make_transfer(alpha, np.array([beta]), render.choose_period(SIZE), dtype)
    image, total = render.render_arcs(lens, components, weights, transfer, SIZE, **kwargs)
    return image[0, 0].numpy(), float(total)


def lenstronomy_one(s, theta_E=1.2, q=0.7, phi=0.5, gamma1=0.03, gamma2=-0.02, x=0.1, y=0.05, R=0.2, n=1.0,
                    source_q=0.7, source_phi=1.0, fwhm=1.1, beta=3.5):  # fmt: skip
    from lensaudit.injection.oracle import to_lens_kwargs, to_light_kwargs

    row = dict(theta_E=theta_E, q=q, phi=phi, gamma1=gamma1, gamma2=gamma2)
    length = SIZE * s
    grid = (np.arange(length) - (length - 1) / 2) * PIXEL_SCALE / s
    xx, yy = (a.ravel() for a in np.meshgrid(grid, grid))
    bx, by = LensModel(["SIE", "SHEAR"]).ray_shooting(xx, yy, to_lens_kwargs(row))
    light = [to_light_kwargs(1.0, x, y, R, n, source_q, source_phi)]
    fine = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(bx, by, light).reshape(length, length)
    alpha = float(psf.moffat_alpha(fwhm, beta)) / PIXEL_SCALE
    offset = (np.arange(2 * length - 1) - (length - 1)) / s
    kernel = (1 + (offset[:, None] ** 2 + offset[None] ** 2) / alpha**2) ** -beta * (beta - 1) / (np.pi * alpha**2)
    return fftconvolve(fine * (PIXEL_SCALE / s) ** 2, kernel, mode="same")[s // 2 :: s, s // 2 :: s]


@pytest.mark.parametrize("q", [1.0, 0.999999, 0.8, 0.4, 0.2])
@pytest.mark.parametrize("phi", [0.0, 0.7, 2.5])
def test_deflection_is_lenstronomys(q, phi):
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-4, 4, (2, 500))
    lens = tensors(theta_E=1.3, q=q, phi=phi, gamma1=0.04, gamma2=-0.07)
    ours = mass.shoot_rays(torch.as_tensor(x), torch.as_tensor(y), lens)
    theirs = LensModel(["SIE", "SHEAR"]).ray_shooting(x, y, lens_kwargs(lens))
    assert np.abs(np.array([o.numpy() for o in ours]) - theirs).max() < 3e-6
    single = mass.shoot_rays(torch.tensor(x).float(), torch.tensor(y).float(), {k: v.float() for k, v in lens.items()})
    assert np.abs(np.array([o.numpy() for o in single]) - theirs).max() < 2e-5


CASES = [(q, phi, theta_E, R) for q, phi in ((1.0, 0.0), (0.8, 0.6), (0.5, 2.2), (0.3, 1.2))
         for theta_E, R in ((0.6, 0.1), (1.2, 0.3), (2.4, 0.15), (2.4, 0.6))]  # fmt: skip


@pytest.mark.parametrize("q, phi, theta_E, R", CASES)
def test_brightness_is_lenstronomys_on_the_same_grid(q, phi, theta_E, R):
    """Axis ratio x angle x theta_E x source size at 5 samples per pixel: 1e-6 of the peak where light is convolved."""
    s, lens = 5, tensors(theta_E=theta_E, q=q, phi=phi, gamma1=0.03, gamma2=-0.02)
    grid = (np.arange(SIZE * s) - (SIZE * s - 1) / 2) * PIXEL_SCALE / s
    xx, yy = np.meshgrid(grid, grid)
    component, _ = sources.make_components([0.25 * theta_E], [-0.1], [R], [1.0], [0.7], [1.0], dtype=torch.float64)
    bx, by = mass.shoot_rays(torch.as_tensor(xx), torch.as_tensor(yy), lens)
    ours = sources.evaluate_sersic(bx, by, component).numpy()
    kwargs = lens_kwargs(lens)
    # lenstronomy's own softening of its SIE is 3e-6 arcsec; its power law of slope 2 has none.
    tx, ty = LensModel(["EPL", "SHEAR"]).ray_shooting(xx.ravel(), yy.ravel(), [kwargs[0] | {"gamma": 2.0}, kwargs[1]])
    from lensaudit.injection.oracle import to_light_kwargs

    light = [to_light_kwargs(1.0, 0.25 * theta_E, -0.1, R, 1.0, 0.7, 1.0)]
    theirs = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(tx, ty, light).reshape(xx.shape)
    offset = (np.arange(2 * len(grid) - 1) - len(grid) + 1) / s
    kernel = (1 + (offset[:, None] ** 2 + offset[None] ** 2) / 4.0) ** -3.5
    ours, theirs = (fftconvolve(v, kernel, mode="same") for v in (ours, theirs))
    assert np.abs(ours - theirs).max() < 1e-6 * theirs.max()


@pytest.mark.parametrize("q, phi, theta_E, R", CASES)
def test_arcs_are_lenstronomys(q, phi, theta_E, R):
    """The engine's own sampling against lenstronomy's at 15 per pixel, which is converged for these sources."""
    case = dict(q=q, phi=phi, theta_E=theta_E, R=R, x=0.25 * theta_E, y=-0.1)
    ours, _ = render_one(**case)
    theirs = lenstronomy_one(15, **case)
    assert np.abs(ours - theirs).max() < 1e-3 * theirs.max()


@pytest.mark.parametrize("R, n", [(0.02, 1.0), (0.05, 1.0), (0.05, 2.0), (0.1, 0.5), (0.1, 4.0), (0.3, 1.0)])
def test_default_sampling_is_close_to_fine_sampling(R, n):
    reference, _ = render_one(R=R, n=n, panel_width=0.3)
    single, _ = render_one(R=R, n=n, dtype=torch.float32)
    double, _ = render_one(R=R, n=n)
    assert np.abs(single - double).max() < 1e-5 * double.max()
    assert np.abs(double - reference).max() < 2e-3 * reference.max()


def test_torch_takes_the_same_panels_as_the_compiled_sampler(monkeypatch):
    for case in (dict(), dict(q=0.4, R=0.05, n=2.0, x=0.3), dict(theta_E=2.5, R=0.5, x=-0.4)):
        compiled, _ = render_one(**case)
        with monkeypatch.context() as patch:
            patch.setattr(sample, "compiled_sample", None)
            plain, _ = render_one(**case)
        assert np.abs(plain - compiled).max() < 5e-5 * compiled.max()


def test_unlensed_source_keeps_its_flux_and_place():
    image, total = render_one(theta_E=0.0, gamma1=0.0, gamma2=0.0, x=1.31, y=-0.786, R=0.4, flux=3.0)
    assert total == pytest.approx(3.0, rel=1e-3)
    assert image.sum() == pytest.approx(3.0, rel=3e-3)  # the Moffat's wings leave the box
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert (row, column) == (32 - 3, 32 + 5)


def mass_names():
    return ("theta_E", "q", "phi", "gamma1", "gamma2")


def test_lensed_flux_is_mu_times_unlensed_flux():
    """A small source far from caustics: point-source magnifications of lenstronomy's own solver."""
    case = dict(theta_E=1.3, q=0.75, phi=0.4, gamma1=0.02, gamma2=0.03, x=0.45, y=-0.3)
    _, total = render_one(R=0.03, n=1.0, flux=2.0, **case)
    lens = tensors(**{k: case[k] for k in mass_names()})
    model = LensModel(["SIE", "SHEAR"])
    tx, ty = LensEquationSolver(model).image_position_from_source(case["x"], case["y"], lens_kwargs(lens))
    mu = np.abs(model.magnification(tx, ty, lens_kwargs(lens))).sum()
    assert total == pytest.approx(2.0 * mu, rel=0.01)


def test_images_are_those_of_lenstronomys_solver():
    rng = np.random.default_rng(11)
    n = 40
    lens = tensors(theta_E=rng.uniform(0.6, 2.0, n), q=rng.uniform(0.5, 0.95, n), phi=rng.uniform(0, 3, n),
                   gamma1=rng.normal(0, 0.03, n), gamma2=rng.normal(0, 0.03, n))  # fmt: skip
    beta = lens["theta_E"].numpy() * np.sqrt(rng.uniform(0.02, 1.2, n))
    angle = rng.uniform(0, 6.28, n)
    x, y = beta * np.cos(angle), beta * np.sin(angle)
    count, mu = mass.find_images(torch.as_tensor(x), torch.as_tensor(y), lens)
    model, agree = LensModel(["SIE", "SHEAR"]), 0
    for i in range(n):
        solver, kwargs = LensEquationSolver(model), lens_kwargs(lens, i)
        tx, ty = solver.image_position_from_source(x[i], y[i], kwargs, min_distance=0.05, search_window=10)
        theirs = np.abs(model.magnification(tx, ty, kwargs))
        real = theirs > 1e-4  # the central image of an isothermal lens carries no light
        agree += int(count[i]) == real.sum()
        if int(count[i]) == real.sum() and theirs[real].sum() < 15:
            assert float(mu[i]) == pytest.approx(theirs[real].sum(), rel=0.05)
    assert agree >= n - 1  # a source within the solver's tolerance of a caustic may differ


def test_half_of_the_flux_is_inside_the_half_light_radius():
    for n in (0.5, 1.0, 2.5, 4.0):
        grid = (np.arange(1200) - 599.5) * 0.01
        xx, yy = np.meshgrid(grid, grid)
        component, _ = sources.make_components([0.0], [0.0], [0.5], [n], [0.6], [0.3], dtype=torch.float64)
        value = sources.evaluate_sersic(torch.as_tensor(xx), torch.as_tensor(yy), component).numpy() * 1e-4
        cos, sin = np.cos(0.3), np.sin(0.3)
        radius = np.sqrt(0.6 * (xx * cos + yy * sin) ** 2 + (yy * cos - xx * sin) ** 2 / 0.6)
        assert value[radius < 0.5].sum() == pytest.approx(0.5, abs=0.01)
        extent = float(sources.sersic_extent(n)) * 0.5
        if extent < 5:
            assert value[radius < extent].sum() == pytest.approx(1.0, abs=2e-3)


def test_clumps_lie_where_they_should():
    u = np.random.default_rng(0).random((4000, 24))
    ones = np.ones(4000)
    clumps = sources.place_clumps(u, 0.4 * ones, ones, 0 * ones, np.full(4000, 3))
    radius = np.hypot(clumps["dx"], clumps["dy"])[:, :3]
    assert np.median(radius) == pytest.approx(0.4, abs=0.01)
    assert np.allclose(clumps["share"].sum(1), 1.0)
    assert (clumps["share"] > 0).sum(1).tolist() == [3] * 4000


@pytest.mark.parametrize("beta", [2.5, 3.5, 4.5, 3.0])
def test_moffat_transfer_is_the_hankel_transform(beta):
    k = torch.tensor([[0.0, 0.3, 1.0, 2.0]], dtype=torch.float64)
    ours = psf.transfer_moffat(k, torch.tensor(2.2, dtype=torch.float64), beta).numpy()[0]
    r = np.linspace(0, 400, 400001)
    profile = (1 + (r / 2.2) ** 2) ** -beta * (beta - 1) / (np.pi * 2.2**2)
    for value, frequency in zip(ours, k.numpy()[0], strict=True):
        assert value == pytest.approx(np.trapezoid(2 * np.pi * r * profile * j0(frequency * r), r), abs=2e-5)


def test_psf_image_and_analytic_moffat_agree():
    """A PSF image of the survey, on native pixels, gives the arc of the Moffat it samples."""
    beta, fwhm = 3.5, 1.2
    image, _ = render_one(fwhm=fwhm, beta=beta)
    alpha = float(psf.moffat_alpha(fwhm, beta)) / PIXEL_SCALE
    offset = np.arange(-32, 33)
    kernel = psf.check_kernel((1 + (offset[:, None] ** 2 + offset[None] ** 2) / alpha**2) ** -beta, SIZE)
    transfer = psf.transfer_image(kernel[None, None], render.choose_period(SIZE))
    lens = tensors(theta_E=1.2, q=0.7, phi=0.5, gamma1=0.03, gamma2=-0.02)
    components, owner = sources.make_components([0.1], [0.05], [0.2], [1.0], [0.7], [1.0], dtype=torch.float64)
    weights = (torch.ones((1, 1)).double(), torch.zeros((0, 1)).double(), torch.as_tensor(owner))
    other, _ = render.render_arcs(lens, components, weights, transfer, SIZE)
    assert np.abs(other[0, 0].numpy() - image).max() < 5e-3 * image.max()


def test_bad_psf_images_are_refused():
    bad = np.full((5, 5), np.nan)
    for kernel, word in ((np.ones((66, 66)), "odd"), (np.ones((67, 67)), "larger"), (bad, "finite")):
        with pytest.raises(UserError, match=word):
            psf.check_kernel(kernel, 65)


def test_truncation_stays_below_two_thousandths():
    """Nothing is cut that matters: the box, the source's extent and the period against four times the area."""
    case = dict(theta_E=2.8, q=0.6, x=0.5, y=0.3, R=0.6, fwhm=1.4, beta=2.5)
    ours, _ = render_one(**case)
    theirs = lenstronomy_one(9, **case)
    assert np.abs(ours - theirs).max() < 2e-3 * theirs.max()


def test_flux_per_pixel_is_not_surface_brightness():
    """lenstronomy's INTERPOL takes flux / arcsec^2; an image in flux / pixel must be divided by the pixel's area."""
    from lensaudit.photometry import brightness_to_pixel

    image = np.zeros((41, 41))
    image[15:26, 15:26] = 1.0 / 121  # flux per pixel, in all 1
    grid = (np.arange(200) - 99.5) * 0.02
    xx, yy = np.meshgrid(grid, grid)

    def total(values):
        kwargs = [{"image": values, "amp": 1.0, "center_x": 0, "center_y": 0, "phi_G": 0, "scale": 0.05}]
        return LightModel(["INTERPOL"]).surface_brightness(xx.ravel(), yy.ravel(), kwargs).sum() * 0.02**2

    assert total(image / 0.05**2) == pytest.approx(1.0, rel=0.02)
    assert total(image) < 0.01  # the trap: 400 times too faint at this scale
    assert brightness_to_pixel(1.0, 0.05) == pytest.approx(0.05**2)


def test_interpol_keeps_its_first_image_and_we_do_not():
    """The trap: a reused LightModel renders the first object's image for every later one."""
    first, second = np.zeros((21, 21)), np.zeros((21, 21))
    first[10, 10], second[5, 5] = 1.0, 1.0
    x, y = np.array([0.0, -0.25]), np.array([0.0, -0.25])
    common = {"amp": 1.0, "center_x": 0, "center_y": 0, "phi_G": 0, "scale": 0.05}
    kwargs = [{"image": image} | common for image in (first, second)]
    reused = LightModel(["INTERPOL"])
    one, two = (reused.surface_brightness(x, y, [k]) for k in kwargs)
    fresh = LightModel(["INTERPOL"]).surface_brightness(x, y, [kwargs[1]])
    assert np.allclose(one, two) and not np.allclose(fresh, two)
    # The engine: rendering B after A is rendering B.
    render_one(R=0.3)
    after, _ = render_one(R=0.1)
    alone, _ = render_one(R=0.1)
    assert np.array_equal(after, alone)
