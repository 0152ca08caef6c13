"""Named priors against SPEC and FACTS, their densities against importance identities, forecasts against lenstronomy."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from lensaudit.artifacts import find_root
from lensaudit.injection import density, forecast
from lensaudit.injection import population as pop

N = 20000


def test_published_is_exactly_the_facts_list():
    prior = pop.load_prior("published_2026")
    s = prior["source"]
    assert s["kind"] == "uniform" and s["mag_r"] == [23.0, 26.0]
    assert (s["g_r"], s["r_z"]) == ([1.15, 0.30], [0.85, 0.20])
    assert (s["index"], s["radius"], s["position"]) == ([0.5, 2.0], [0.15, 0.5], [0.1, 0.4])
    assert s["clumpy_fraction"] == 0.0
    assert prior["deflector"]["kind"] == "uniform" and prior["deflector"]["hosts"] == "random"
    assert prior["light"]["psf"] == "gaussian_psfsize_r" and not prior["light"]["arc_noise"]
    assert not prior["cuts"]["selection"]
    drawn = pop.draw_sources(np.random.default_rng(0).random((N, 11)), np.full(N, 2.0), prior)
    colour = drawn["mag_source_g"] - drawn["mag_source_r"]
    assert colour.mean() == pytest.approx(1.15, abs=0.01) and colour.std() == pytest.approx(0.30, abs=0.01)
    assert (drawn["n_clumps"] == 0).all() and drawn["source_R"].min() >= 0.15 and drawn["source_R"].max() <= 0.5


def test_fiducial_is_the_facts_recipe():
    for name in ("collett", "cosmos_like"):
        d, s = (pop.load_prior(name)[k] for k in ("deflector", "source"))
        assert (d["phi_star"], d["sigma_star"], d["alpha"], d["beta"]) == (8e-3, 161.0, 2.32, 2.67)
        assert d["axis_ratio"] == [0.378, 0.000572] and s["axis_ratio_scale"] == 0.3 and s["size_scatter"] == 0.35
    s = pop.load_prior("collett")["source"]
    assert np.mean(s["index"]) == 1.0 and np.ptp(s["index"]) == pytest.approx(0.3) and s["clumps"] == [2, 6]
    assert pop.load_prior("cosmos_like")["source"]["mag_limit"] == 25.0


def test_the_fiducial_prior_is_the_one_colletts_table_was_made_with():
    kept = json.loads((find_root() / "benchmarks" / "results" / "collett_table.json").read_text(encoding="utf-8"))
    assert kept["prior_hash"] == pop.load_prior("collett")["hash"]


def test_brief_and_its_grid_are_the_specs():
    assert pop.load_prior("brief")["source"]["mag_r"] == [22.0, 26.0]
    grid = pop.load_prior("brief_grid")["grid"]
    assert grid["theta_E"] == [0.3, 0.5, 0.7, 1.0, 1.3, 1.6] and grid["radius"] == [0.05, 0.10, 0.15, 0.25]
    assert grid["dmag"] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    low, high = pop.load_prior("brief")["source"]["position"]
    beta = np.sqrt(low**2 + (high**2 - low**2) * (np.arange(N) + 0.5) / N)
    mu = 2.0 / beta  # of an isothermal sphere
    assert np.percentile(mu, 16) == pytest.approx(5, abs=0.5) and 10 < np.percentile(mu, 90) < 30


def draw(prior, seed, n=N):
    """Draw lenses and sources at z_lens = 0.4 in the density's variables."""
    rng = np.random.default_rng(seed)
    d, s, out = prior["deflector"], prior["source"], {"z_lens": np.full(n, 0.4)}
    if d["kind"] == "vdf":
        many = pop.draw_parents(rng.random((40 * n, 4)), prior)
        near = np.flatnonzero(np.abs(many["z_lens"] - 0.4) < 0.0124)[:n]
        out = {k: v[near] for k, v in many.items() if k != "sigma_v"}
        out["log_q"] = None
    else:
        out |= {"theta_E": rng.uniform(*d["theta_E"], n), "z_source": rng.uniform(*s["z"], n)}
    n = len(out["theta_E"])
    out |= pop.draw_sources(rng.random((n, 11)), out["z_source"], prior)
    radius = out["theta_E"] * np.sqrt(rng.uniform(s["position"][0] ** 2, s["position"][1] ** 2, n))
    angle = rng.uniform(0, 2 * np.pi, n)
    return out | {"source_x": radius * np.cos(angle), "source_y": radius * np.sin(angle)}


MEANS = ("theta_E", "z_source", "mag_source_r", "mag_source_g", "mag_source_z", "source_R", "source_q", "source_n",
         "n_clumps", "clump_fraction")  # fmt: skip


@pytest.mark.parametrize("old, new", [("flat", "brief"), ("cosmos_like", "collett"), ("flat", "collett")])
def test_weights_turn_one_prior_into_another(old, new):
    """Means of the new prior come back from draws of the old, wherever the old has support."""
    many = 15 * N if (old, new) == ("flat", "collett") else N
    a, b = draw(pop.load_prior(old), 1, many), draw(pop.load_prior(new), 2)
    a["log_q"] = density.measure_density(a, pop.load_prior(old))
    assert np.isfinite(a["log_q"]).all()
    if old == "flat":  # the new one's own draws, where the old could have drawn them
        weight, _ = density.weigh_prior(a, pop.load_prior(new))
        seen = np.isfinite(density.measure_density(b, pop.load_prior(old)))
        if new == "collett":
            for t in (a, b):
                t["keep"] = (t["z_source"] > 1.2) & (t["z_source"] < 2.8) & (t["mag_source_r"] > 23.0)
                t["keep"] &= (t["mag_source_r"] < 25.8) & (t["source_R"] > 0.1) & (t["source_R"] < 0.7)
            weight, seen = np.where(a["keep"], weight, 0.0), seen & b["keep"]
    else:
        weight, _ = density.weigh_prior(a, pop.load_prior(new))
        seen = b["mag_source_r"] < 24.9
        weight = np.where(a["mag_source_r"] < 24.9, weight, 0.0)
    assert seen.sum() > 100
    n_eff = weight.sum() ** 2 / (weight**2).sum()
    assert n_eff > 50
    for name in MEANS:
        mean = np.average(a[name], weights=weight)
        error = np.sqrt((weight**2 * (a[name] - mean) ** 2).sum()) / weight.sum()
        error = np.hypot(error, b[name][seen].std() / np.sqrt(seen.sum()))
        assert abs(mean - b[name][seen].mean()) < 4 * error + 1e-9, (name, mean, b[name][seen].mean(), error)


def test_priors_without_support_say_so():
    a = draw(pop.load_prior("published_2026"), 3)
    a["log_q"] = density.measure_density(a, pop.load_prior("published_2026"))
    far = copy.deepcopy(pop.load_prior("flat"))
    far["source"]["mag_r"] = [18.0, 19.0]
    weight, n_eff = density.weigh_prior(a, far)
    assert n_eff == 0.0 and not weight.any()


def test_structure_is_drawn_where_a_prior_names_it():
    prior, ids = copy.deepcopy(pop.load_prior("collett")), np.arange(500)
    args = (1, "test", ids, 4, np.arange(2000), {"theta_E": np.full(2000, 1.5)})
    assert pop.draw_structure(*args, prior) == {}
    prior["deflector"] |= {"slope": [2.05, 0.15], "multipoles": [0.01, 0.02], "subhalo_fraction": 0.3,
                           "subhalo_theta_E": [0.02, 0.2]}  # fmt: skip
    prior["source"]["gradient"] = 0.5
    out = pop.draw_structure(*args, prior)
    assert out["slope"].mean() == pytest.approx(2.05, abs=0.02) and out["slope"].std() == pytest.approx(0.15, abs=0.02)
    assert (out["subhalo_theta_E"] > 0).mean() == pytest.approx(0.3, abs=0.04) and (out["subhalo_r_cut"] > 0).all()
    assert np.abs(out["gradient"]).max() <= 0.5 and np.std(out["a4"]) > np.std(out["a3"])
    part = pop.draw_structure(1, "test", ids[100:101], 4, np.arange(4), {"theta_E": np.full(4, 1.5)}, prior)
    assert np.array_equal(part["slope"], out["slope"][400:404])


ROWS = {"source_x": [0.2, 0.05, 0.4, 0.0], "source_y": [0.1, 0.02, -0.2, 0.3], "source_R": [0.2, 0.1, 0.4, 0.25],
        "source_q": [0.7, 1.0, 0.5, 0.9], "source_phi": [0.3, 0.0, 1.2, 2.0], "theta_E": [1.0, 1.3, 1.8, 0.8],
        "q": [0.8, 0.7, 0.9, 0.6], "phi": [0.4, 1.5, 0.0, 2.2], "gamma1": [0.02, 0.0, -0.03, 0.05],
        "gamma2": [0.0, 0.03, 0.01, -0.02]}  # fmt: skip
ROWS = {k: np.array(v) for k, v in ROWS.items()}


@pytest.mark.parametrize("row", range(4))
def test_forecast_is_lenstronomys(row):
    """Magnification (2 per cent) and S/N (a tenth) of an exponential disc, against rays on a fine grid."""
    p = {k: v[row] for k, v in ROWS.items()}
    step, psfsize = 0.01, 1.1
    x = np.arange(-4.5, 4.5, step) + step / 2
    x, y = np.meshgrid(x, x)
    e1, e2 = phi_q2_ellipticity(p["phi"], p["q"])
    model = LensModel(["SIE", "SHEAR"])
    kwargs = [{"theta_E": p["theta_E"], "e1": e1, "e2": e2}, {"gamma1": p["gamma1"], "gamma2": p["gamma2"]}]
    bx, by = model.ray_shooting(x.ravel(), y.ravel(), kwargs)
    dx, dy = bx - p["source_x"], by - p["source_y"]
    u, v = (np.cos(p["source_phi"]) * dx + np.sin(p["source_phi"]) * dy,
            np.cos(p["source_phi"]) * dy - np.sin(p["source_phi"]) * dx)  # fmt: skip
    r = np.sqrt(p["source_q"] * u**2 + v**2 / p["source_q"]) / p["source_R"]
    b = 1.67834699
    light = (b**2 / (2 * np.pi * p["source_R"] ** 2) * np.exp(-b * r)).reshape(x.shape) * step**2
    sigma = psfsize / 2.354820045
    arc = gaussian_filter(light, sigma / step, truncate=6)
    snr = np.sqrt((arc**2).sum() / step**2 * 4 * np.pi * sigma**2)  # of a source whose point S/N is 1
    out = forecast.forecast_arcs(ROWS, np.full(4, psfsize), np.ones(4))
    assert out["mu"][row] == pytest.approx(light.sum(), rel=0.02)
    assert out["snr"][row] == pytest.approx(snr, rel=0.10)
    assert out["multiplicity"][row] >= 2


def test_bounds_lie_above_forecasts():
    rng = np.random.default_rng(5)
    n = 3000
    table = {"theta_E": rng.uniform(0.4, 3.0, n), "q": rng.uniform(0.3, 1.0, n), "phi": rng.uniform(0, np.pi, n),
             "gamma1": rng.normal(0, 0.03, n), "gamma2": rng.normal(0, 0.03, n), "source_R": rng.uniform(0.03, 0.8, n),
             "source_q": rng.uniform(0.3, 1.0, n), "source_phi": rng.uniform(0, np.pi, n)}  # fmt: skip
    radius, angle = table["theta_E"] * np.sqrt(rng.uniform(0, 1.44, n)), rng.uniform(0, 2 * np.pi, n)
    table |= {"source_x": radius * np.cos(angle), "source_y": radius * np.sin(angle)}
    psfsize = rng.uniform(0.8, 1.8, n)
    out = forecast.forecast_arcs(table, psfsize, np.ones(n))
    mu, snr = forecast.bound_arcs(table, psfsize, np.ones(n))
    lensed = out["multiplicity"] >= 2
    assert (mu > out["mu"])[lensed].all() and (snr > out["snr"])[lensed].all()
    few = forecast.forecast_arcs(table, psfsize, np.full(n, 1.0), 3.0, 4.0, 1.0)
    sure = (out["mu"] > 3.0) & (out["snr"] > 4.0)
    assert few["passed"][sure].mean() > 0.995 and not few["passed"][~sure].any()
    assert ks_2samp(out["mu"][sure], few["mu"][sure]).statistic < 0.01


def test_surface_brightness_is_that_of_a_known_image():
    """A Gaussian image of flux F and width s has sum f^2 / sum f = F / (4 pi s^2)."""
    sigma_pix, flux, width, dust = 0.003, 2.0, 0.8, 0.9
    ivar = 1 / (4 * np.pi * (1.2 / 2.354820045 / 0.262) ** 2 * sigma_pix**2)
    host = pd.DataFrame({"host_index": [0], "mw_transmission_r": [dust], "psfsize_r": [1.2], "psfdepth_r": [ivar]})
    x = (np.arange(101) - 50) * 0.262
    image = flux * dust * 0.262**2 / (2 * np.pi * width**2) * np.exp(-(x[:, None] ** 2 + x**2) / (2 * width**2))
    table = pd.DataFrame({"injection_id": [0], "host_index": [0], "mag_lensed_r": [22.5 - 2.5 * np.log10(flux)],
                          "arc_snr_true": [np.sqrt((image**2).sum()) / sigma_pix]})  # fmt: skip
    expected = 22.5 - 2.5 * np.log10(flux / (4 * np.pi * width**2))
    got = forecast.add_brightness(table, host)["arc_surface_brightness"][0]
    assert got == pytest.approx(expected, abs=0.01)
