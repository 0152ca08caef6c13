"""Sources against lenstronomy, scipy and closed forms."""

import numpy as np
import pytest
import torch
from astropy.modeling.models import Sersic2D
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.integrate import dblquad

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
