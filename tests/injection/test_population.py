"""Populations against closed forms and the numbers of FACTS 4."""

import numpy as np
import pandas as pd
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy.integrate import quad
from scipy.special import gammaincc
from scipy.stats import qmc

from lensaudit.injection import galaxies
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


def test_sources_look_as_published():
    """Ultraviolet slopes of Bouwens+ 2009 and Kurczynski+ 2014, sizes of FACTS 4; steeply more faint ones."""
    u = np.random.default_rng(1).random((40000, 11))
    source = pop.draw_sources(u, np.full(40000, 1.85), PRIOR)
    colour = source["mag_source_g"] - source["mag_source_r"]
    slope = colour / (2.5 * np.log10(6400 / 4800)) - 2.0  # g and r at 1700-2250 A
    bright = np.abs(source["mag_source_r"] - 24.4) < 0.5  # M_1500 of -20
    assert np.median(slope[bright]) == pytest.approx(-1.5, abs=0.15)
    assert np.median(source["mag_source_r"]) > 26 and np.median(slope[~bright]) < np.median(slope[bright])
    # M_V is at least 0.6 (the break) and at most 2 mag brighter than M_1500.
    size = np.median(source["source_R"][bright])
    low, high = (10 ** galaxies.mean_log_size(M, 1.85, PRIOR) for M in (-20.4, -22.0))
    assert low < size < high
    assert ((source["source_q"] >= 0.2) & (source["source_q"] <= 1)).all()
    low = pop.draw_sources(u, np.full(40000, 0.5), PRIOR)
    assert np.median(low["mag_source_g"] - low["mag_source_r"]) > 0.25  # the break lies between g and r


def test_counts_are_those_of_surveys():
    """Galaxies per square degree to i = 22-26 within 25 per cent of COSMOS2020's (Weaver+ 2022, Table 2: bins of 0.5
    mag from 19.25).

    The share beyond z = 0.3 is that of p(z) ~ z^2 exp(-z / z0), z0 = 0.0417 i - 0.744 (LSST Science Book 3.7).
    """
    logs = [3.01, 3.23, 3.44, 3.64, 3.85, 4.03, 4.21, 4.38, 4.54, 4.71, 4.86, 4.97, 5.08, 5.20]  # /mag/deg^2
    z, number = pop.source_density(PRIOR)
    rng = np.random.default_rng(4)
    t = pop.draw_sources(rng.random((200000, 11)), rng.choice(z, 200000, p=number / number.sum()), PRIOR)
    share = np.log(7700 / 6400) / np.log(9200 / 6400)  # i lies between r and z
    i = t["mag_source_r"] - share * (t["mag_source_r"] - t["mag_source_z"])
    for limit, edge in ((22, 6), (23, 8), (24, 10), (25, 12), (26, 14)):
        beyond = gammaincc(3, 0.3 / (0.0417 * limit - 0.744))
        theirs = 0.5 * (10 ** np.array(logs[:edge])).sum() * beyond
        ours = number.sum() * np.radians(1) ** 2 * (i < limit).mean()
        assert ours == pytest.approx(theirs, rel=0.25), limit


def test_quiescent_galaxies_are_the_red_ones():
    """At z = 0.7, r < 23 the colours are bimodal and about a third is red (Brown+ 2007, Faber+ 2007: 0.2-0.5)."""
    t = pop.draw_sources(np.random.default_rng(5).random((200000, 11)), np.full(200000, 0.7), PRIOR)
    bright = t["mag_source_r"] < 23
    red = (t["mag_source_r"] - t["mag_source_z"])[bright] > 1.2
    assert 0.15 < red.mean() < 0.5


@pytest.mark.parametrize("name, z", [("collett", 0.45), ("collett", 1.0), ("collett", 2.3), ("cosmos_like", 1.5)])
def test_density_is_that_of_the_draws(name, z):
    """Share of the draws in boxes of (r, g-r, r-z, log R), against the density summed over even points there."""
    prior, n = pop.load_prior(name), 200000
    rng = np.random.default_rng(6)
    t = pop.draw_sources(rng.random((n, 11)), np.full(n, z), prior)
    x = np.stack([t["mag_source_r"], t["mag_source_g"] - t["mag_source_r"], t["mag_source_r"] - t["mag_source_z"],
                  np.log10(t["source_R"])], axis=1)  # fmt: skip
    half, points = np.array([0.5, 0.15, 0.15, 0.25]), qmc.Sobol(4, seed=7).random(4096)
    for centre in x[(x[:, 0] > 22.0) & (x[:, 0] < 24.5)][:12]:
        r, g_r, r_z, size = (centre + half * (2.0 * points - 1.0)).T
        box = {"mag_source_g": r + g_r, "mag_source_r": r, "mag_source_z": r - r_z, "source_R": 10**size}
        log = galaxies.measure_galaxy_density(box | {"z_source": np.full(len(r), z)}, prior)
        expected = n * np.exp(log).mean() * (2.0 * half).prod()
        count = (np.abs(x - centre) < half).all(axis=1).sum()
        assert abs(count - expected) < 4 * np.sqrt(expected) + 0.02 * expected, (centre, count, expected)


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
