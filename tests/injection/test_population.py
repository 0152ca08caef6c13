"""Populations against closed forms and the numbers of FACTS 4."""

import numpy as np
import pandas as pd
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy.integrate import quad

from lensaudit.injection import population as pop
from lensaudit.injection.cells import _share, plan_brief, tabulate_sources

PRIOR = pop.load_prior("collett")


def test_priors_are_named_and_hashed():
    names = ("collett", "cosmos_like", "flat", "brief", "brief_grid", "published_2026")
    assert len({pop.load_prior(name)["hash"] for name in names}) == len(names)
    assert all(pop.load_prior(name)["name"] == name for name in names)


def test_distances_are_astropys():
    cosmology = FlatLambdaCDM(70, 0.3)
    z = np.array([0.1, 0.5, 2.0])
    assert np.allclose(pop.distance_modulus(z, PRIOR), cosmology.distmod(z).value, atol=1e-3)
    assert np.allclose(pop.volume_element(z, PRIOR), cosmology.differential_comoving_volume(z).value, rtol=1e-3)


def test_einstein_radius_of_the_facts():
    """0.69 / 1.08 / 1.56 arcsec for 200 / 250 / 300 km/s at D_ls/D_s = 0.6."""
    z_lens = 0.5
    chi = pop.comoving_distance(z_lens, PRIOR) / 0.4
    z = np.linspace(0.6, 6, 20001)
    z_source = z[np.argmin(np.abs(pop.comoving_distance(z, PRIOR) - chi))]
    assert np.allclose(pop.sigma_to_theta([200, 250, 300], z_lens, z_source, PRIOR), [0.69, 1.08, 1.56], atol=0.01)
    assert pop.theta_to_sigma(3.0, z_lens, z_source, PRIOR) == pytest.approx(416, abs=2)
    assert pop.sigma_to_theta(250.0, 0.8, 0.5, PRIOR) == 0.0


def test_velocity_dispersion_function_integrates_to_phi_star():
    total = quad(lambda s: float(pop.velocity_dispersion_function(s, PRIOR)), 1.0, 1000.0)[0]
    assert total == pytest.approx(8e-3 * 0.7**3, rel=1e-3)


def test_magnitude_and_sigma_are_inverse():
    sigma = np.array([150.0, 220.0, 300.0])
    assert np.allclose(pop.magnitude_to_sigma(pop.sigma_to_magnitude(sigma, 0.4), 0.4), sigma)
    assert pop.magnitude_to_sigma(-22.5, 0.0) == pytest.approx(208, abs=1)


def test_parents_are_in_bounds_and_weighted_by_area():
    u = np.random.default_rng(0).random((20000, 4))
    drawn = pop.draw_parents(u, PRIOR)
    low, high = PRIOR["deflector"]["theta_E"]
    assert ((drawn["theta_E"] > 0.8 * low) & (drawn["theta_E"] < 1.1 * high)).all()
    assert (drawn["z_source"] > drawn["z_lens"]).all() and np.isfinite(drawn["log_q"]).all()
    # The density returned is that of the draws at their z_lens: its inverse integrates a box to its area.
    near = np.abs(drawn["z_lens"] - 0.5) < 0.2
    inside = near & (np.abs(drawn["theta_E"] - 1.2) < 0.2) & (np.abs(drawn["z_source"] - 2.0) < 0.5)
    assert np.exp(-drawn["log_q"][inside]).sum() / near.sum() == pytest.approx(0.4 * 1.0, rel=0.1)


def test_sources_look_as_the_facts_say():
    """Sizes R = 10^(-(M_V+18)/4) ((1+z)/1.6)^-1.2 kpc with 0.35 dex; blue; steeply more faint ones."""
    u = np.random.default_rng(1).random((20000, 9))
    source = pop.draw_sources(u, np.full(20000, 1.85), PRIOR)
    colour = source["mag_source_g"] - source["mag_source_r"]
    assert np.median(colour) == pytest.approx(-0.01, abs=0.08)
    assert np.median(source["mag_source_r"]) > 26
    bright = np.abs(source["mag_source_r"] - 24.2) < 0.4
    assert np.median(source["source_R"][bright]) == pytest.approx(0.28, rel=0.5)
    assert ((source["source_q"] >= 0.2) & (source["source_q"] <= 1)).all()
    low = pop.draw_sources(u, np.full(20000, 0.5), PRIOR)
    assert np.median(low["mag_source_g"] - low["mag_source_r"]) > 0.25  # the break lies between g and r


def test_shares_sum_and_keep_the_limit():
    rng = np.random.default_rng(2)
    for n, limit in ((50, 4), (200, 4), (10, 1)):
        weight = rng.random(80) ** 3
        counts = _share(weight, n, limit, rng.random())
        assert counts.sum() == n and counts.max() <= limit
    assert _share(np.array([1.0, 0.0, 1.0]), 10, 4, 0.3).tolist() == [5, 0, 5]  # hosts do not allow the limit


def test_brief_grid_fills_every_cell_alike():
    prior = pop.load_prior("brief_grid")
    hosts = pd.DataFrame({"mag_r": [18.0, 19.0, 20.0], "mw_transmission_r": [0.9, 1.0, 1.0],
                          "deflector_weight": [1.0, 0.0, 3.0]})  # fmt: skip
    plan = plan_brief(hosts, 8, 3, prior)
    assert (plan.groupby("cell").size() == 8).all() and plan["cell"].nunique() == 6 * 6 * 4
    assert (plan.groupby(["cell", "row"]).size().unstack() == [2, 6]).all().all()  # shares of the weights, evenly
    first = plan[(plan["cell"] == 0) & (plan["row"] == 0)].iloc[0]
    assert first["mag_source_r"] == pytest.approx(18.0 + 2.5 * np.log10(0.9) + 0.5)
    assert (first["theta_E"], first["source_R"]) == (0.3, 0.05)


def test_sources_behind_a_host_follow_number_and_dispersion():
    """Chance of z_source: number of sources times a normal in log sigma (0.08 dex), by direct summation."""
    z, density = pop.source_density(PRIOR)
    cumulative = tabulate_sources(np.array([1.2]), np.array([0.4]), np.array([np.log10(250.0)]), PRIOR)[0]
    unit = 4 * np.pi * (1 / pop.LIGHT_SPEED) ** 2 * pop.ARCSEC
    ratio = 1 - pop.comoving_distance(0.4, PRIOR) / pop.comoving_distance(z, PRIOR)
    sigma = np.sqrt(1.2 / (unit * np.where(ratio > 0, ratio, np.nan)))
    expected = np.nan_to_num(density * np.exp(-0.5 * (np.log10(sigma / 250.0) / 0.08) ** 2))
    assert np.allclose(cumulative, np.cumsum(expected) / expected.sum(), atol=1e-9)
