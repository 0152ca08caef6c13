"""The oracle against closed forms and brute force, the conversion both ways, and the engine against the oracle."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.config import Config
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.injection import inject, oracle
from lensaudit.lensing.sources import make_image_bank

CONFIG = Config(device="cpu")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_row(**changes):
    """One row and its host: a lens of middling shape, a disc of half-light radius 0.15 arcsec near its caustic."""
    row = {
        "injection_id": 7, "host_index": 3, "theta_E": 1.3, "q": 0.7, "phi": 0.6, "gamma1": 0.03, "gamma2": -0.02,
        "source_x": 0.12, "source_y": -0.07, "source_R": 0.15, "source_n": 1.0, "source_q": 0.6, "source_phi": 1.1,
        "mag_source_g": 23.4, "mag_source_r": 23.0, "mag_source_z": 22.7, "n_clumps": 0, "clump_fraction": 0.0,
        "psf_beta": 3.5,
    } | changes  # fmt: skip
    host = {"host_index": [3], "galaxy_id": ["a"]}
    for band, psfsize in zip(BANDS, (1.6, 1.4, 1.3), strict=True):
        host |= {f"psfsize_{band}": psfsize, f"psfdepth_{band}": photometry.depth_to_ivar(24.0),
                 f"mw_transmission_{band}": 0.9, f"nobs_{band}": 4}  # fmt: skip
    return pd.DataFrame([row]), pd.DataFrame(host)


def render(row, host, bands=("r",), size=33, **options):
    images, flux = oracle.render_rows(row, host, CONFIG, 5, bands=bands, size=size, dtype=np.float64, **options)
    return images[0], flux[0]


def extincted_flux(row, band="r"):
    return 0.9 * 10 ** (0.4 * (22.5 - row[f"mag_source_{band}"].iloc[0]))


def test_grid_of_samples_loses_nothing():
    """Against the direct sum of the point-spread function over all samples."""
    rng = np.random.default_rng(1)
    x, y, flux = rng.uniform(8, 24, 400), rng.uniform(8, 24, 400), rng.uniform(0, 1, 400)
    psf = {"alpha": 0.62, "beta": 2.5, "e1": 0.1, "e2": -0.05, "wings": False}
    image = oracle.convolve_samples(x, y, flux, 33, psf, "r")
    centre = np.arange(33)
    dx = (centre[None, :, None] - x) * PIXEL_SCALE
    dy = (centre[:, None, None] - y) * PIXEL_SCALE
    direct = PIXEL_SCALE**2 * (oracle.evaluate_psf(dx, dy, psf, "r") @ flux)
    assert np.abs(image - direct).max() < 2e-5 * direct.max()


@pytest.mark.parametrize("wings", [False, True])
def test_point_spread_function_holds_its_flux(wings):
    psf = {"alpha": 0.8, "beta": 2.5, "e1": 0.08, "e2": 0.05, "wings": wings}
    axis = (np.arange(4001) - 2000) * 0.1
    total = oracle.evaluate_psf(axis[None, :], axis[:, None], psf, "g").sum() * 0.01
    assert abs(total - 1) < (2e-3 if wings else 1e-5)  # the wings reach beyond 200 arcsec


def test_unlensed_source_keeps_flux_and_place():
    row, host = make_row(theta_E=0.0, gamma1=0.0, gamma2=0.0, psf_beta=4.5)
    image, flux = render(row, host, size=65)
    assert abs(flux[0] / extincted_flux(row) - 1) < 1e-5
    axis = (np.arange(65) - 32) * PIXEL_SCALE
    assert abs((image[0] * axis).sum() / image[0].sum() - 0.12) < 2e-3
    assert abs((image[0] * axis[:, None]).sum() / image[0].sum() + 0.07) < 2e-3


def test_lensed_light_is_lenstronomys_image_model():
    """lenstronomy's own pixels, without point-spread function, at 24 samples per pixel and axis."""
    row, host = make_row(n_clumps=4, clump_fraction=0.3)
    description = oracle.describe_row(row, host, 5)
    x, y, light = oracle.collect_samples(description, 25)
    fluxes = np.array([g["flux"]["r"] for g in description["groups"].values()])
    index = np.rint(y).astype(int) * 25 + np.rint(x).astype(int)
    image = np.bincount(index, fluxes @ light, minlength=625).reshape(25, 25)
    data = ImageData(np.zeros((25, 25)), ra_at_xy_0=-12 * PIXEL_SCALE, dec_at_xy_0=-12 * PIXEL_SCALE,
                     transform_pix2angle=PIXEL_SCALE * np.eye(2))  # fmt: skip
    names, kwargs = [], []
    for group in description["groups"].values():
        names += group["light_model_list"]
        kwargs += [k | {"amp": k["amp"] * group["flux"]["r"]} for k in group["kwargs_light"]]
    model = ImageModel(data, PSF("NONE"), LensModel(description["lens_model_list"]), LightModel(names),
                       kwargs_numerics={"supersampling_factor": 24})  # fmt: skip
    theirs = model.image(description["kwargs_lens"], kwargs, [], [])
    assert np.abs(image - theirs).max() < 2e-3 * theirs.max()
    assert abs(image.sum() / theirs.sum() - 1) < 2e-4


def test_finer_cells_change_nothing():
    row, host = make_row(n_clumps=3, clump_fraction=0.4, source_R=0.05, source_n=2.0)
    coarse, _ = render(row, host)
    fine, _ = render(row, host, tolerance=1e-7, depth=13)
    assert np.abs(coarse - fine).max() < 1e-5 * fine.max()


def test_psf_image_of_a_moffat_is_the_moffat():
    row, host = make_row(psf_beta=4.5)
    description = oracle.describe_row(row, host, 5)
    axis = (np.arange(33) - 16) * PIXEL_SCALE
    kernel = oracle.evaluate_psf(axis[None, :], axis[:, None], description["psf"]["r"], "r")
    given, _ = render(row, host, psf_images=kernel[None, None] / kernel.sum())
    closed, _ = render(row, host)
    assert np.abs(given - closed).max() < 2e-3 * closed.max()


def test_point_source_has_its_images():
    """An isothermal sphere's two images: theta = theta_E +- beta, mu = theta / beta."""
    row, host = make_row(q=1.0, gamma1=0.0, gamma2=0.0, source_x=0.3, source_y=0.0, source_mode="point",
                         quasar_fraction_g=0.5, quasar_fraction_r=1.0, quasar_fraction_z=0.0)  # fmt: skip
    x, y, mu = oracle.find_point_images(oracle.describe_row(row, host, 5))
    order = np.argsort(x)
    assert np.allclose(x[order] * PIXEL_SCALE, [-1.0, 1.6], atol=1e-4) and np.abs(y).max() < 1e-4
    assert np.allclose(mu[order], [1.0 / 0.3, 1.6 / 0.3], rtol=1e-3)
    image, flux = render(row, host)
    assert abs(flux[0] / (2 * 1.3 / 0.3 * extincted_flux(row)) - 1) < 1e-3
    psf = oracle.describe_row(row, host, 5)["psf"]["r"]
    axis = (np.arange(33) - 16) * PIXEL_SCALE
    expected = sum(
        m * oracle.evaluate_psf(axis[None] - p, axis[:, None], psf, "r") / 0.3 for p, m in ((-1.0, 1.0), (1.6, 1.6))
    )
    expected *= PIXEL_SCALE**2 * extincted_flux(row)
    assert np.abs(image[0] - expected).max() < 1e-3 * expected.max()


def test_gradient_moves_light_and_keeps_flux():
    """Unlensed: the centroid moves along the major axis by R E[t tanh t], by quadrature over the profile."""
    still = dict(theta_E=0.0, gamma1=0.0, gamma2=0.0, source_x=0.0, source_y=0.0, source_R=0.5, source_n=0.5)
    row, host = make_row(gradient=0.6, **still)
    samples = oracle.collect_samples(oracle.describe_row(row, host, 5), 65)
    x, y = ((v - 32) * PIXEL_SCALE for v in samples[:2])
    along, light = x * np.cos(1.1) + y * np.sin(1.1), samples[2][0]
    assert abs(light.sum() - 1) < 1e-5
    # A Gaussian: along the major axis sigma = R / sqrt(2 ln 2) / sqrt(q).
    sigma = 0.5 / np.sqrt(2 * np.log(2)) / np.sqrt(0.6)
    t = np.linspace(-8, 8, 20001) * sigma
    weight = np.exp(-0.5 * (t / sigma) ** 2)
    expected = 0.6 * (t * np.tanh(t / 0.5) * weight).sum() / weight.sum()
    assert abs((along * light).sum() - expected) < 1e-4


FULL = {"slope": 2.15, "a3": 0.01, "phi3": 0.3, "a4": -0.02, "phi4": 0.2, "subhalo_theta_E": 0.05, "subhalo_x": 0.9,
        "subhalo_y": 0.8, "subhalo_r_cut": 0.4, "psf_e1": 0.03, "psf_e2": -0.02, "psf_wings": True}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"n_clumps": 5, "clump_fraction": 0.35}, FULL,
                                     {"source_mode": "point", "quasar_fraction_g": 0.3, "quasar_fraction_r": 0.4,
                                      "quasar_fraction_z": 0.2, "n_clumps": 2, "clump_fraction": 0.2}])  # fmt: skip
def test_conversion_goes_both_ways(changes):
    row, host = make_row(**changes)
    back = oracle.from_lenstronomy(oracle.to_lenstronomy(row, host, 5), host)
    for name, value in row.iloc[0].items():
        if isinstance(value, str):
            assert back[name].iloc[0] == value
        else:
            assert back[name].iloc[0] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    again, _ = render(back, host)
    assert np.abs(again - render(row, host)[0]).max() < 1e-6 * again.max()


@pytest.fixture(scope="module")
def bank():
    """Two stamps of 31 pixels, lopsided so that a turn or a mirror shows."""
    v, u = np.indices((31, 31)) - 15.0
    knot = 0.3 * np.exp(-0.5 * ((u + 4) ** 2 + (v - 3) ** 2) / 3)
    stamps = np.stack([np.exp(-0.5 * ((u - 2) ** 2 / 16 + v**2 / 6)) + knot, np.exp(-0.5 * (u**2 + v**2) / 9)])
    stamps /= stamps.sum((1, 2), keepdims=True)
    centre = np.stack([(stamps * (g + 15.0)).sum((1, 2)) for g in (u, v)], axis=1)
    return make_image_bank(stamps, centre, np.array([4.0, 3.0]))


BANKED = {"source_mode": "bank", "bank_index": 0, "source_R": 0.3, "source_phi": 0.8, "source_n": 1.0, "source_q": 1.0}


def test_bank_image_keeps_flux_and_its_place_and_turn(bank):
    row, host = make_row(**BANKED | {"theta_E": 0.0, "gamma1": 0.0, "gamma2": 0.0})
    x, y, light = oracle.collect_samples(oracle.describe_row(row, host, 5, bank=bank), 25)
    x, y = ((t - 12) * PIXEL_SCALE for t in (x, y))
    assert abs(light.sum() - 1) < 1e-3
    assert abs((x * light).sum() - 0.12) < 1e-3 and abs((y * light).sum() + 0.07) < 1e-3
    # Second moments of the stamp, turned by phi and scaled.
    c, scale = bank.coefficients[0].astype(float), 0.3 / 4.0
    v, u = np.indices(c.shape)
    u, v = u - bank.centre[0, 0], v - bank.centre[0, 1]
    moments = scale**2 * np.array([[(c * u * u).sum(), (c * u * v).sum()], [(c * u * v).sum(), (c * v * v).sum()]])
    turn = np.array([[np.cos(0.8), -np.sin(0.8)], [np.sin(0.8), np.cos(0.8)]])
    expected = turn @ moments @ turn.T
    dx, dy = x - 0.12, y + 0.07
    found = np.array(
        [[(dx * dx * light).sum(), (dx * dy * light).sum()], [(dx * dy * light).sum(), (dy * dy * light).sum()]]
    )
    # A cubic B-spline adds a third of a pixel squared, linear interpolation a sixth of its finer pixel's.
    assert np.abs(found - expected - np.eye(2) * scale**2 * (1 / 3 + 1 / 384)).max() < 2e-3 * expected.max()


def test_bank_image_goes_both_ways_and_is_not_cached(bank):
    row, host = make_row(**BANKED)
    description = oracle.to_lenstronomy(row, host, 5, bank=bank)
    back = oracle.from_lenstronomy(description, host, bank)
    for name, value in row.iloc[0].items():
        if not isinstance(value, str):
            assert back[name].iloc[0] == pytest.approx(value, rel=1e-6, abs=1e-7), name
    first, _ = render(row, host, bank=bank)
    second, _ = render(row.assign(bank_index=1), host, bank=bank)
    both, _ = oracle.render_rows(
        pd.concat([row, row.assign(bank_index=1)]), host, CONFIG, 5, ("r",), size=33, bank=bank
    )
    assert np.abs(both[0] - first).max() < 1e-6 * first.max() and np.abs(both[1] - second).max() < 1e-6 * second.max()
    assert np.abs(first - second).max() > 0.01 * first.max()
    description["groups"]["disc"]["kwargs_light"][0]["image"] = np.ones((3, 3))
    with pytest.raises(UserError, match="bank"):
        oracle.from_lenstronomy(description, host, bank)
    with pytest.raises(UserError, match="injection 7: bank_index"):
        render(row, host)


def test_kwargs_are_ones_lenstronomy_takes():
    row, host = make_row(**FULL)
    out = oracle.to_lenstronomy(row, host, 5, psf_supersampling=3, psf_size=21)
    assert len(PSF(**out["kwargs_psf"]["g"]).kernel_point_source) == 21
    alpha = LensModel(out["lens_model_list"]).alpha(1.0, 0.4, out["kwargs_lens"])
    assert np.isfinite(alpha).all()


def test_subhalo_is_a_truncated_isothermal_sphere():
    """Deflection theta_E (r + r_cut - sqrt(r^2 + r_cut^2)) / r."""
    row, _ = make_row(**FULL)
    names, kwargs = oracle.to_mass_model(row.iloc[0])
    x = np.array([0.95, 1.3, 2.5])
    alpha, _ = LensModel([names[-1]]).alpha(x, np.full(3, 0.8), kwargs[-1:])
    r = x - 0.9
    assert np.allclose(alpha, 0.05 * (r + 0.4 - np.hypot(r, 0.4)) / r, rtol=1e-5)


def test_what_has_no_words_is_refused():
    for changes, message in (({"gradient": 0.3}, "injection 7: gradient"), ({"inner_images": False}, "inner_images")):
        row, host = make_row(**changes)
        with pytest.raises(UserError, match=message):
            oracle.to_lenstronomy(row, host, 5)
    row, host = make_row(n_clumps=3, clump_fraction=0.3)
    for spoil, message in (
        (lambda d: d["kwargs_lens"][0].update(center_x=0.1), "off centre"),
        (lambda d: d["lens_model_list"].__setitem__(0, "NFW"), "cannot hold NFW"),
        (lambda d: d["groups"]["clumps"]["kwargs_light"][0].update(center_x=0.5), "clumps"),
        (lambda d: d["groups"]["disc"].update(light_model_list=["HERNQUIST"]), "HERNQUIST"),
        (lambda d: d["kwargs_lens"][0].update(theta_E=np.nan), "injection 7: theta_E = nan"),
        (lambda d: d["kwargs_lens"][0].update(theta_E=-1.0), "injection 7: theta_E = -1"),
        (lambda d: d["kwargs_lens"][0].update(e1=1.2), "injection 7: q = "),
        (lambda d: d["kwargs_lens"][0].pop("theta_E"), "injection 7: .* lacks 'theta_E'"),
        (lambda d: d["kwargs_lens"].pop(), "injection 7: 2 names"),
        (lambda d: [d[k].append(d[k][0]) for k in ("lens_model_list", "kwargs_lens")], "a second SIE"),
        (lambda d: d.update(host_index=77), "injection 7: .* lacks 77"),
        (lambda d: d.pop("groups"), "injection 7: .* lacks 'groups'"),
        (lambda d: d["groups"]["disc"]["flux"].update(r=-9.0), "injection 7: mag_source_r = nan"),
        (lambda d: d["psf"]["r"].update(beta=np.nan), "injection 7: psf_beta = nan"),
    ):
        description = oracle.to_lenstronomy(row, host, 5)
        spoil(description)
        with pytest.raises(UserError, match=message):
            oracle.from_lenstronomy(description, host)


def test_either_renderer_takes_the_same_call():
    engine, reference = (inspect.signature(f).parameters for f in (inject.render_table, oracle.render_rows))
    shared = ("table", "hosts", "config", "seed", "bands", "psf_mode", "psf_images", "dtype", "size")
    assert list(reference)[:4] == list(engine)[:4] and all(k in engine and k in reference for k in shared)


@pytest.mark.parametrize("changes", [
    {"source_x": 0.5}, {"n_clumps": 6, "clump_fraction": 0.4}, {"source_R": 0.05, "source_n": 2.0, "psf_beta": 2.5},
    {"theta_E": 0.0, "gamma1": 0.0, "gamma2": 0.0}, {"source_R": 0.02}, {"gradient": 0.6}, FULL | {"psf_wings": False},
    {"psf_wings": True, "psf_e1": 0.05, "psf_e2": 0.02},
    {"quasar_fraction_g": 0.3, "quasar_fraction_r": 0.4, "quasar_fraction_z": 0.5},
    {"inner_images": False, "source_x": 0.6, "source_R": 0.08},
])  # fmt: skip
def test_engine_is_the_oracle(changes):
    row, host = make_row(**changes)
    theirs, flux = render(row, host, bands=BANDS, size=65)
    ours, total = inject.render_table(row, host, CONFIG, 5)
    assert np.abs(ours[0] - theirs).max() < 2e-3 * theirs.max()
    assert np.abs(total[0] / flux - 1).max() < 5e-4


def test_a_row_is_injected_by_either_engine_with_the_same_noise():
    row, host = make_row()
    stamps = np.full((1, 3, 65, 65), 0.01, dtype=np.float32)
    own, arcs = inject.inject(row, host, stamps, CONFIG, 5)
    theirs, reference = inject.inject(row, host, stamps, CONFIG, 5, engine="lenstronomy")
    assert 0 < np.abs(arcs - reference).max() < 2e-3 * reference.max()
    assert np.abs(own - theirs).max() < 4e-3 * reference.max()
    with pytest.raises(UserError, match="engine 'galsim' unknown; use lensaudit or lenstronomy"):
        inject.inject(row, host, stamps, CONFIG, 5, engine="galsim")
    with pytest.raises(UserError, match="leave psfsize out"):
        inject.inject(row, host, stamps, CONFIG, 5, engine="lenstronomy", psfsize=np.full((1, 3), 1.2))


def test_engine_is_the_oracle_for_bank_images(bank):
    row, host = make_row(**BANKED)
    theirs, flux = render(row, host, bands=BANDS, size=65, bank=bank)
    ours, total = inject.render_table(row, host, CONFIG, 5, bank=bank)
    assert np.abs(ours[0] - theirs).max() < 2e-3 * theirs.max()
    assert np.abs(total[0] / flux - 1).max() < 5e-4
