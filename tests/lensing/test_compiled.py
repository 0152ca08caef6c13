"""What the compiled sampler does for many positions at once, against numpy, scipy, lenstronomy and one at a time."""

import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.interpolate import BSpline

from lensaudit.lensing import compiled, compiled_leaves, compiled_math, compiled_sources, mass, sources
from lensaudit.lensing.quadrature import NODES, WEIGHTS


@compiled.compile_loops
def apply(x, which):
    """Return one of the functions of `compiled_math` of every element."""
    out = np.empty(len(x))
    for k in range(len(x)):
        if which == 0:
            out[k] = compiled_math.take_exp(x[k])
        elif which == 1:
            out[k] = compiled_math.take_log(x[k])
        else:
            out[k] = compiled_math.take_arctan(x[k])
    return out


def test_functions_are_the_librarys():
    x = np.linspace(-700.0, 700.0, 50_001)
    assert np.abs(apply(x, 0) / np.exp(x) - 1.0).max() < 1e-12
    assert apply(np.array([-1e6, 1e6]), 0) == pytest.approx(np.exp([-700.0, 700.0]), rel=1e-12)
    y = np.concatenate([np.exp(x), np.linspace(0.5, 2.0, 20_001)])
    assert (np.abs(apply(y, 1) - np.log(y)) / np.maximum(np.abs(np.log(y)), 1.0)).max() < 1e-13
    assert apply(np.zeros(1), 1)[0] < -700.0
    root = np.sqrt(np.linspace(1e-8, compiled_math.REACH, 20_001))
    assert np.abs(apply(root**2, 2) / (np.arctan(root) / root) - 1.0).max() < 3e-10
    assert np.abs(apply(-(root**2), 2) / (np.arctanh(root) / root) - 1.0).max() < 3e-10


@pytest.mark.parametrize("q", [1.0, 0.999999, 0.8, 0.4, 0.2, 0.1])
def test_rays_are_lenstronomys(q):
    """The steepest fit of the arc tangents ends at q = 0.2, below which rays are traced one by one."""
    x, y = np.random.default_rng(3).uniform(-4, 4, (2, 501))
    bx, by = np.empty(501), np.empty(501)
    packed = mass.pack_lens(dict(theta_E=[1.3], q=[q], phi=[0.7], gamma1=[0.04], gamma2=[-0.07]))
    compiled.trace_rays(x, y, 501, compiled.prepare_lens(packed[0]), bx, by)
    e1, e2 = phi_q2_ellipticity(0.7, q)
    kwargs = [{"theta_E": 1.3, "gamma": 2.0, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0},
              {"gamma1": 0.04, "gamma2": -0.07}]  # fmt: skip
    theirs = LensModel(["EPL", "SHEAR"]).ray_shooting(x, y, kwargs)
    # lenstronomy takes e = 1e-9 of a round lens for an axis ratio and sums its series to 1e-8 or so.
    assert np.abs(np.array([bx, by]) - theirs).max() < 2e-7
    ax, ay = compiled.deflect_positions(x, y, packed[0])
    assert max(np.abs(x - ax - bx).max(), np.abs(y - ay - by).max()) < 1.3e-9 + 1.3e-8 * (q == 1.0)
    compiled.trace_rays(np.zeros(1), np.zeros(1), 1, compiled.prepare_lens(packed[0]), bx, by)
    assert bx[0] == 0.0 and by[0] == 0.0


@pytest.mark.parametrize("extra", [{"slope": 2.1}, {"a3": 0.02, "phi3": 0.3}, {"a4": 0.02, "phi4": 0.9},
                                   {"subhalo_theta_E": 0.1, "subhalo_x": 0.5, "subhalo_y": -1.0,
                                    "subhalo_r_cut": 0.4}])  # fmt: skip
def test_other_lenses_are_not_taken_for_plain_ones(extra):
    x, y = np.random.default_rng(4).uniform(-3, 3, (2, 100))
    bx, by = np.empty(100), np.empty(100)
    row = dict(theta_E=1.2, q=0.7, phi=0.4, gamma1=0.0, gamma2=0.01) | extra
    packed = mass.pack_lens({k: [v] for k, v in row.items()})[0]
    compiled.trace_rays(x, y, 100, compiled.prepare_lens(packed), bx, by)
    ax, ay = compiled.deflect_positions(x, y, packed)
    assert np.allclose(bx, x - ax, rtol=0, atol=1e-12) and np.allclose(by, y - ay, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [0.5, 1.0, 0.8, 2.5, 4.0])
@pytest.mark.parametrize("gradient", [0.0, 0.6])
def test_profiles_are_those_of_one_position(n, gradient):
    shape = [np.atleast_1d(v) for v in (0.1, -0.2, 0.3, n, 0.6, 0.4)]
    components, _ = sources.make_components(*shape, gradient=np.atleast_1d(gradient))
    row, value = compiled_sources.pack_components(components)[0], np.empty(300)
    x, y = np.random.default_rng(1).uniform(-1.5, 1.5, (2, 300))
    x[0], y[0] = row[0], row[1]  # the centre itself
    compiled_leaves.evaluate_profiles(x, y, 300, row, value)
    alone = [compiled_sources.evaluate_profile(a - row[0], b - row[1], row) for a, b in zip(x, y, strict=True)]
    assert np.allclose(value, alone, rtol=1e-10, atol=0)


@pytest.mark.parametrize("order", [0, 1])
def test_splines_are_scipys(order):
    t, width, out = np.linspace(-0.5, 0.5, 41), np.full(41, 0.25), np.empty((3, 5, 41))
    compiled_leaves.weigh_splines(t, width, 0, 41, order, out)
    spline = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    for a in range(order + 2):
        for s in range(5):
            theirs = np.nan_to_num(spline(t + NODES[order, a] * 0.25 - (s - 2)))
            assert np.allclose(out[a, s], 0.25 * WEIGHTS[order, a] * theirs, rtol=0, atol=1e-14)
