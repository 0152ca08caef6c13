"""Mass models and image finding against lenstronomy, closed forms and each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.Util.param_util import phi_q2_ellipticity

from lensaudit.lensing import compiled, images, mass

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["EPL", "SHEAR", "MULTIPOLE", "MULTIPOLE", "PJAFFE"]
CORE = 1e-8  # lenstronomy's smallest core of a pseudo-Jaffe profile [arcsec]; ours has none
FULL = dict(theta_E=1.3, q=0.7, phi=0.6, gamma1=0.04, gamma2=-0.07, slope=2.1, a3=0.02, phi3=0.4, a4=-0.03, phi4=1.0,
            subhalo_theta_E=0.1, subhalo_x=1.0, subhalo_y=0.5, subhalo_r_cut=0.6)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def oracle_kwargs(row):
    e1, e2 = phi_q2_ellipticity(row["phi"], row["q"])
    r_cut = row["subhalo_r_cut"]
    sigma0 = row["subhalo_theta_E"] * (r_cut - CORE) / (2 * CORE * r_cut)
    return [{"theta_E": row["theta_E"], "gamma": row["slope"], "e1": e1, "e2": e2, "center_x": 0, "center_y": 0},
            {"gamma1": row["gamma1"], "gamma2": row["gamma2"]},
            {"m": 3, "a_m": row["a3"], "phi_m": row["phi3"], "center_x": 0, "center_y": 0},
            {"m": 4, "a_m": row["a4"], "phi_m": row["phi4"], "center_x": 0, "center_y": 0},
            {"sigma0": sigma0, "Ra": CORE, "Rs": r_cut, "center_x": row["subhalo_x"],
             "center_y": row["subhalo_y"]}]  # fmt: skip


def to_tensors(row, dtype=torch.float64):
    return {k: torch.as_tensor(np.atleast_1d(v), dtype=torch.float64).to(dtype) for k, v in row.items()}


def pack_row(row):
    return mass.pack_lens({k: [v] for k, v in row.items()})[0]


def shoot(x, y, row, dtype=torch.float64):
    out = mass.shoot_rays(torch.as_tensor(x).to(dtype), torch.as_tensor(y).to(dtype), to_tensors(row, dtype))
    return np.array([o.double().numpy() for o in out])


def draw_systems(n, seed):
    """Draw systems with everything on, and a source inside 1.1 theta_E of each."""
    rng = np.random.default_rng(seed)
    theta_E = rng.uniform(0.7, 2.0, n)
    where, radius = rng.uniform(0, 2 * np.pi, n), theta_E * rng.uniform(0.7, 1.3, n)
    lens = dict(theta_E=theta_E, q=rng.uniform(0.4, 0.98, n), phi=rng.uniform(0, np.pi, n),
                gamma1=rng.normal(0, 0.04, n), gamma2=rng.normal(0, 0.04, n), slope=rng.uniform(1.75, 2.3, n),
                a3=0.01 * theta_E * rng.normal(0, 1, n), phi3=rng.uniform(0, 2, n),
                a4=0.01 * theta_E * rng.normal(0, 1, n), phi4=rng.uniform(0, 2, n),
                subhalo_theta_E=rng.uniform(0.01, 0.1, n), subhalo_x=radius * np.cos(where),
                subhalo_y=radius * np.sin(where), subhalo_r_cut=rng.uniform(0.1, 1.0, n))  # fmt: skip
    beta, angle = 1.1 * theta_E * np.sqrt(rng.uniform(0.001, 1, n)), rng.uniform(0, 2 * np.pi, n)
    return lens, beta * np.cos(angle), beta * np.sin(angle)


def test_packed_order_is_the_same_everywhere():
    places = {name.upper().replace("SUBHALO", "SUB"): i for i, name in enumerate(mass.PACK)}
    assert all(getattr(compiled, name) == i for name, i in places.items())
    packed = mass.pack_lens({"theta_E": [1.0, 2.0], "q": torch.ones(2), "phi": np.zeros(2)})
    assert packed.tolist() == [[t, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1] for t in (1.0, 2.0)]


@pytest.mark.parametrize("q", [1.0, 0.999999, 0.8, 0.5, 0.3, 0.2])
@pytest.mark.parametrize("slope", [1.6, 1.9, 2.0, 2.1, 2.4])
def test_deflection_is_lenstronomys(q, slope):
    """Axis ratio x slope x angle with shear, multipoles and a subhalo: 1e-6 theta_E, in float32 5e-6."""
    x, y = np.random.default_rng(2).uniform(-4, 4, (2, 300))
    for phi in (0.0, 0.7, 2.5):
        row = FULL | dict(q=q, slope=slope, phi=phi)
        model, kwargs = LensModel(MODEL), oracle_kwargs(row)
        theirs = np.array(model.ray_shooting(x, y, kwargs))
        ours = shoot(x, y, row)
        fast = np.array([x, y]) - compiled.deflect_positions(x, y, pack_row(row))
        assert np.abs(ours - theirs).max() < 1e-6 * row["theta_E"]
        assert np.abs(fast - ours).max() < 1e-11
        assert np.abs(shoot(x, y, row, torch.float32) - theirs).max() < 5e-6 * row["theta_E"]
        inverse = 1.0 / model.magnification(x, y, kwargs)
        assert np.abs(1.0 / compiled.magnify_positions(x, y, pack_row(row)) - inverse).max() < 1e-6
        both = torch.as_tensor(x), torch.as_tensor(y)
        assert np.abs(1.0 / mass.magnify_positions(*both, to_tensors(row)).numpy() - inverse).max() < 1e-6


@pytest.mark.parametrize("q", [0.2, 0.35, 0.6, 0.9])
@pytest.mark.parametrize("slope", [1.6, 2.0, 2.4])
def test_angular_series_has_converged(q, slope):
    """The power law alone, against the hypergeometric function: 1e-9 theta_E (b/R)^(t-1)."""
    x, y = np.random.default_rng(5).uniform(-3, 3, (2, 300))
    kwargs = oracle_kwargs(FULL | dict(q=q, slope=slope))[:1]
    theirs = LensModel(["EPL"]).alpha(x, y, kwargs)
    shape = to_tensors(dict(theta_E=1.3, q=q, phi=0.6, slope=slope))
    ours = mass.deflect_epl(torch.as_tensor(x), torch.as_tensor(y), *shape.values())
    largest = max(np.abs(theirs).max(), 1.0)
    assert np.abs(np.array([o.numpy() for o in ours]) - theirs).max() < 1e-9 * 1.3 * largest
    assert compiled.count_terms(q) == float(mass.count_terms(torch.tensor(q).double()))


def test_terms_are_as_stated():
    q = torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    assert mass.count_terms(q).tolist() == [53, 19, 12, 0]


@pytest.mark.parametrize("slope", [1.6, 2.0, 2.4])
def test_sphere_has_its_closed_form(slope):
    x, y = np.random.default_rng(6).uniform(-3, 3, (2, 100))
    row = dict(theta_E=1.1, q=1.0, phi=0.3, gamma1=0.0, gamma2=0.0, slope=slope)
    r = np.hypot(x, y)
    alpha = 1.1 * (1.1 / r) ** (slope - 2.0)
    assert np.allclose(np.array([x, y]) - shoot(x, y, row), alpha * np.array([x, y]) / r, atol=2e-8)
    assert np.all(shoot(0.0, 0.0, row) == 0.0)
    assert compiled.deflect(0.0, 0.0, pack_row(row)) == (0.0, 0.0)


def test_no_mass_deflects_nothing():
    row = FULL | dict(theta_E=0.0, a3=0.0, a4=0.0, subhalo_theta_E=0.0, gamma1=0.0, gamma2=0.0)
    for slope in (1.8, 2.0, 2.2):
        assert shoot(0.3, -0.4, row | dict(slope=slope)).ravel().tolist() == pytest.approx([0.3, -0.4])
        assert compiled.deflect(0.3, -0.4, pack_row(row | dict(slope=slope))) == (0.0, 0.0)


def test_a_lens_does_not_depend_on_its_batch():
    """Isothermal rows keep their bits beside power laws, and power laws keep theirs beside flatter ones."""
    x, y = torch.as_tensor(np.random.default_rng(7).uniform(-3, 3, (2, 1, 50)))
    base = {k: FULL[k] for k in ("theta_E", "q", "phi", "gamma1", "gamma2")}
    plain = mass.shoot_rays(x, y, to_tensors(base))
    alone = mass.shoot_rays(x, y, to_tensors(base | dict(slope=2.2)))
    many = {k: torch.full((3, 1), v, dtype=torch.float64) for k, v in base.items()}
    many["slope"] = torch.tensor([[2.0], [2.2], [1.7]], dtype=torch.float64)
    many["q"][2] = 0.2
    together = mass.shoot_rays(x, y, many)
    for k in range(2):
        assert torch.equal(together[k][0], plain[k][0])
        assert torch.equal(together[k][1], alone[k][0])


def test_subhalo_has_finite_mass():
    """alpha = M(<r) / (pi r): theta_E well inside the truncation, mass pi theta_E r_cut far outside."""
    r = torch.tensor([1e-6, 1e5], dtype=torch.float64)
    alpha, _ = mass.deflect_subhalo(r, torch.zeros_like(r), torch.tensor(0.1).double(), torch.tensor(0.5).double())
    assert (alpha[0] / 0.1).item() == pytest.approx(1.0, abs=1e-5)
    assert (alpha[1] * r[1]).item() == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_images_are_those_of_lenstronomys_solver():
    """Everything on, 60 systems: the same number of images, and the magnification to 1e-3.

    Left out are sources within 1 % of theta_E of a caustic: some step of that size changes their number of images.
    """
    n = 60
    lens, x, y = draw_systems(n, seed=21)
    packed = mass.pack_lens(lens)
    count, mu = images.count_images(x, y, packed)
    near = np.zeros(n, dtype=bool)
    for angle in np.arange(12) * np.pi / 6:
        step = 0.01 * lens["theta_E"]
        near |= images.count_images(x + step * np.cos(angle), y + step * np.sin(angle), packed)[0] != count
    assert near.mean() < 0.25
    model = LensModel(MODEL)
    solver = LensEquationSolver(model)
    for i in np.flatnonzero(~near):
        row = {k: float(v[i]) for k, v in lens.items()}
        kwargs, size = oracle_kwargs(row), row["theta_E"]
        tx, ty = solver.image_position_from_source(x[i], y[i], kwargs, min_distance=0.03 * size, num_iter_max=200,
                                                   search_window=6.0 * size, precision_limit=1e-10)  # fmt: skip
        fxx, _, _, fyy = model.hessian(tx, ty, kwargs)
        theirs = model.magnification(tx, ty, kwargs)
        maximum = (theirs > 0) & (fxx + fyy > 2.0)  # the demagnified central image
        theirs = np.abs(theirs[~maximum & (np.abs(theirs) > images.FAINTEST)])
        assert count[i] == theirs.size, (i, row, x[i], y[i])
        assert mu[i] == pytest.approx(theirs.sum(), rel=1e-3)


def test_positions_solve_the_lens_equation():
    lens, x, y = draw_systems(50, seed=4)
    found, packed = images.find_images(x, y, mass.pack_lens(lens)), mass.pack_lens(lens)
    for i in range(50):
        px, py, mu = found[i][~np.isnan(found[i, :, 2])].T
        ax, ay = compiled.deflect_positions(px, py, packed[i])
        assert np.abs(px - ax - x[i]).max() < 1e-8 and np.abs(py - ay - y[i]).max() < 1e-8
        assert np.all(np.diff(np.abs(mu)) <= 0)
        assert np.allclose(mu, compiled.magnify_positions(px, py, packed[i]))


def test_angular_scan_agrees_with_torch_and_with_the_grid():
    """Isothermal lenses: the scan is its torch twin's to 1e-7, and with multipoles it counts what the grid counts."""
    lens, x, y = draw_systems(400, seed=8)
    plain = {k: lens[k] for k in ("theta_E", "q", "phi", "gamma1", "gamma2")}
    ours = images.magnify_images(x, y, mass.pack_lens(plain))
    twin = mass.magnify_images(torch.as_tensor(x), torch.as_tensor(y), to_tensors(plain)).numpy()
    assert np.array_equal((ours > 0).sum(1), (twin > 0).sum(1))
    assert np.allclose(ours.sum(1), twin.sum(1), rtol=1e-7)
    isothermal = mass.pack_lens({k: v for k, v in lens.items() if "subhalo" not in k and k != "slope"})
    fine = images.magnify_images(x, y, isothermal, 1440)
    count, mu = images.count_images(x, y, isothermal)
    same = count == (fine > images.FAINTEST).sum(1)
    assert same.mean() >= 0.99  # the rest lies at caustics
    bulk = same & (mu < 30)
    assert np.allclose(mu[bulk], fine[bulk].sum(1), rtol=1e-3)


@pytest.mark.parametrize("low, high", [(1.7, 1.99), (1.999, 2.001), (2.01, 2.3)])
def test_angular_scan_of_power_laws_counts_what_the_grid_counts(low, high):
    """At least 99 % of sources have the same number of images, and their magnifications are within 1 %."""
    lens, x, y = draw_systems(500, seed=9)
    lens = {k: v for k, v in lens.items() if "subhalo" not in k}
    lens["slope"] = low + (high - low) * (lens["slope"] - 1.75) / 0.55
    packed = mass.pack_lens(lens)
    scan, (count, mu) = images.magnify_images(x, y, packed), images.count_images(x, y, packed)
    same = (scan > 0).sum(1) == count
    assert same.mean() >= 0.99
    bulk = same & (mu < 20)
    assert np.allclose(scan[bulk].sum(1), mu[bulk], rtol=0.01)


def test_extreme_lenses_have_finite_images():
    """No mass: one image, magnified by the shear. A perfect ring: bright, several, finite."""
    where = np.array([0.3]), np.array([-0.2])
    for slope in (1.8, 2.0, 2.2):
        empty = dict(theta_E=[0.0], q=[0.7], phi=[0.1], gamma1=[0.1], gamma2=[0.0], slope=[slope])
        for mu in (images.magnify_images(*where, mass.pack_lens(empty))[0],
                   np.abs(np.nan_to_num(images.find_images(*where, mass.pack_lens(empty))[0, :, 2]))):  # fmt: skip
            assert (mu > 0).sum() == 1 and mu.sum() == pytest.approx(1 / 0.99)
        ring = mass.pack_lens(dict(theta_E=[1.0], q=[1.0], phi=[0.0], slope=[slope]))
        count, mu = images.count_images(np.zeros(1), np.zeros(1), ring)
        assert count[0] >= 2 and 100 < mu[0] < np.inf
        assert images.magnify_images(np.zeros(1), np.zeros(1), ring).sum() > 100


def test_flux_ratio_is_the_jacobians():
    """The area a small source covers in the image plane, over its own area, is the summed Jacobian magnification."""
    row = FULL | dict(gamma1=0.02, gamma2=0.03, subhalo_theta_E=0.05)
    x, y, radius, step = 0.42, -0.31, 0.02, 0.004
    axis = np.arange(-2.6, 2.6, step) + step / 2
    xx, yy = (a.ravel() for a in np.meshgrid(axis, axis))
    bx, by = np.array([xx, yy]) - compiled.deflect_positions(xx, yy, pack_row(row))
    inside = np.clip((radius + 0.001 - np.hypot(bx - x, by - y)) / 0.002, 0, 1)  # a soft edge, for fewer pixels
    area = inside.sum() * step**2 / (np.pi * (radius**2 + 0.001**2 / 3))
    _, mu = images.count_images(np.array([x]), np.array([y]), mass.pack_lens({k: [v] for k, v in row.items()}))
    assert area == pytest.approx(mu[0], rel=0.01)


def test_changed_callee_is_compiled_anew(tmp_path):
    """numba alone would go on using the stored code of a function whose callee, in another file, has changed."""
    room = tmp_path / "lensaudit" / "lensing"
    room.mkdir(parents=True)
    for folder in (room.parent, room):
        (folder / "__init__.py").write_text("")
    source, functions = ((ROOT / "lensaudit" / "lensing" / name).read_text(encoding="utf-8")
                         for name in ("compiled.py", "compiled_math.py"))  # fmt: skip
    (room / "compiled_math.py").write_text(functions)
    caller = (
        "from lensaudit.lensing.compiled import compile_scalar, count_terms\n\n\n"
        "@compile_scalar\ndef call(q):\n    return count_terms(q)\n"
    )
    (room / "compiled_caller.py").write_text(caller)
    code = "from lensaudit.lensing.compiled_caller import call; print(call(0.5), sum(call.stats.cache_hits.values()))"
    said = []
    for text in (source, source, source.replace("1e-9 * sqrt(q)", "1e-6 * sqrt(q)")):
        (room / "compiled.py").write_text(text)
        env = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        said.append(out.stdout.split())
    assert said == [["19.0", "0"], ["19.0", "1"], ["12.0", "0"]]


def test_masses_need_no_compiler():
    code = "import sys; sys.modules['numba'] = None; import lensaudit.lensing.mass"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
