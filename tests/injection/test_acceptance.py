"""Rows of the grid weighed to a prior, against the prior drawn directly; the chance to pick a host against picking."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from test_injection import make_samples

from lensaudit.config import CompletenessConfig, Config
from lensaudit.injection import acceptance, cells, density, inject, priors
from lensaudit.injection import hosts as host_module
from lensaudit.injection.population import load_prior

CONFIG = Config(device="cpu")
GRID = CompletenessConfig(theta_E=(0.75, 1.25), seeing=(1.1, 1.6), depth=(23.75, 24.75), n_per_cell=40)


@pytest.fixture(scope="module")
def hosts():
    torch.set_num_threads(1)
    return host_module.make_hosts(*make_samples())


@pytest.fixture(scope="module")
def drawn(hosts):
    return priors.draw_grid(hosts, GRID, 4, config=CONFIG)


def is_recovered(table):
    """A chance to be found that depends on much of what the cuts and the hosts act on."""
    logit = 2.0 * np.log(table["arc_snr_true"] / 15.0) + 2.0 * (table["theta_E"] - 1.0)
    return (1.0 / (1.0 + np.exp(0.5 * (table["z_source"] - 1.8) - logit))).to_numpy()


def make_other():
    """Brighter, smoother, rounder sources nearer to the axis, all among those of the fiducial prior."""
    prior = copy.deepcopy(load_prior("collett"))
    prior["source"] |= {"mag_limit": 25.5, "clumpy_fraction": 0.4, "axis_ratio_scale": 0.25, "position": [0.0, 1.0]}
    return prior


@pytest.mark.parametrize("prior", [load_prior("collett"), make_other()], ids=["own", "other"])
def test_grid_weighed_is_the_prior_drawn(hosts, drawn, prior):
    """Recovered fraction, source redshift and magnitude of a direct run, cell by cell and in all."""
    direct = priors.draw_closure(hosts, 500, 5, prior, config=CONFIG)
    own = inject.host_rows(direct, hosts)
    place = [cells.assign_bins(v, c) for v, c in ((direct["theta_E"], GRID.theta_E), (own["psfsize_r"], GRID.seeing),
                                                  (own["depth_r"], GRID.depth))]  # fmt: skip
    cell = np.where(np.min(place, axis=0) >= 0, (place[0] * 2 + place[1]) * 2 + place[2], -1)
    weight, n_eff = density.weigh_prior(drawn, prior)
    assert n_eff > 30
    for number in (*range(8), None):
        ours = np.ones(len(drawn), dtype=bool) if number is None else (drawn["cell"] == number).to_numpy()
        theirs = cell >= 0 if number is None else cell == number
        kish = weight[ours].sum() ** 2 / max((weight[ours] ** 2).sum(), 1e-300)
        if theirs.sum() < 20 or kish < 12:  # too few for an error of the mean
            continue
        for values in (is_recovered, lambda t: t["z_source"].to_numpy(), lambda t: t["mag_source_r"].to_numpy()):
            a, b, w = values(drawn)[ours], values(direct)[theirs], weight[ours]
            mean = np.average(a, weights=w)
            error = b.std() * np.sqrt(1.0 / kish + 1.0 / len(b))  # both are draws of one law
            assert abs(mean - b.mean()) < 3.5 * error, (number, mean, b.mean(), error)
    share, square = (np.bincount(drawn["cell"], weights=weight**k, minlength=8) / weight.sum() ** k for k in (1, 2))
    counts = np.bincount(cell[cell >= 0], minlength=8) / (cell >= 0).sum()
    error = np.sqrt(square + counts / (cell >= 0).sum())
    assert (np.abs(share - counts) < 3.5 * error).all(), (share, counts, error)


def test_chance_to_pick_is_how_often_it_is_picked(hosts):
    matcher = host_module.HostMatcher(hosts)
    n = 20000
    picked = matcher.pick(np.full(n, 240.0), np.full(n, 0.45), (np.arange(n) + 0.5) / n)
    rows = np.arange(len(hosts))
    chance = matcher.measure_chance(rows, np.full(len(rows), 240.0), np.full(len(rows), 0.45))
    assert chance.sum() == pytest.approx(1.0) and (chance[~hosts["in_deflector"]] == 0).all()
    assert np.abs(np.bincount(picked, minlength=len(rows)) / n - chance).max() < 2 / n


def test_chance_to_pass_comes_back_from_trials(hosts):
    """Geometric trials of a known chance, given up after 800; a constant factor would not matter."""
    rng = np.random.default_rng(1)
    n = 8000
    tried = pd.DataFrame({"theta_E": rng.uniform(0.5, 3.0, n), "row": rng.integers(0, len(hosts), n)})
    true = 0.005 * np.exp(1.5 * (tried["theta_E"] - 1.5)) * (hosts["depth_r"].to_numpy()[tried["row"]] - 21.5)
    trials = rng.geometric(true)
    tried = tried.assign(n_trials=np.minimum(trials, 800), found=trials <= 800)
    ratio = acceptance._fit_chance(tried, hosts) / true
    assert ratio.mean() == pytest.approx(1.0, abs=0.05) and ratio.std() < 0.2  # chances differ by a factor of 40
    for low, high in ((0.5, 1.0), (1.5, 2.0), (2.5, 3.0)):
        assert ratio[tried["theta_E"].between(low, high)].mean() / ratio.mean() == pytest.approx(1.0, abs=0.1)


def test_rows_without_population_carry_no_weight(hosts):
    light = hosts.assign(sigma_v=hosts["sigma_v"].clip(upper=150.0))
    grid = CompletenessConfig(theta_E=(2.5, 2.75), seeing=(1.2, 1.35), depth=(25.0, 25.5), n_per_cell=3)
    table = priors.draw_grid(light, grid, 4, config=CONFIG)
    assert table["untied"].all() and np.isneginf(table["log_acceptance"]).all()
    weight, n_eff = density.weigh_prior(table, load_prior("collett"))
    assert n_eff == 0.0 and not weight.any()
