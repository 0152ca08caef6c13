"""Twins' hosts are like the lens on average, although bright galaxies are rarer than faint ones."""

import numpy as np
import pandas as pd

from lensaudit.injection.hosts import MATCH_SCALES, match_conditions, measure_match


def draw_hosts(n, seed, bright):
    generator = np.random.default_rng(seed)
    mag = 20.5 - generator.exponential(0.8, n)
    mag = mag - bright
    table = {"psfsize_r": generator.uniform(0.9, 1.8, n), "depth_r": generator.uniform(23, 25, n), "mag_r": mag,
             "shape_r": 10 ** (0.2 * (19 - mag) + generator.normal(0, 0.1, n)),
             "z_phot": generator.uniform(0.2, 0.7, n)}
    return pd.DataFrame(table).assign(in_deflector=True, galaxy_id=[f"h{i}" for i in range(n)])


def test_twins_hosts_do_not_regress_to_the_mean():
    hosts, lenses = draw_hosts(4000, 1, 0.0), draw_hosts(150, 2, 0.5)
    lenses = lenses[lenses["mag_r"] > 17.5].assign(z_lens=lambda t: t["z_phot"]).drop(columns="z_phot")
    rows = match_conditions(hosts, lenses.reset_index(drop=True), 20, 3)
    for name, limit in (("mag_r", 0.05), ("psfsize_r", 0.02), ("depth_r", 0.05)):
        offset = hosts[name].to_numpy()[rows].mean(axis=1) - lenses[name].to_numpy()
        assert abs(offset.mean()) < limit, name
    assert all(len(set(row)) == 20 for row in rows)


def draw_shaped(n, seed, bright):
    generator = np.random.default_rng(seed + 100)
    radius, angle = generator.uniform(0.0, 0.5, n), generator.uniform(0, np.pi, n)
    return draw_hosts(n, seed, bright).assign(
        shape_e1=radius * np.cos(2 * angle), shape_e2=radius * np.sin(2 * angle), sersic=generator.uniform(1, 6, n),
        fracflux_r=np.where(generator.random(n) < 0.1, generator.uniform(0.05, 0.5, n), 0.0))  # fmt: skip


def as_lenses(table):
    return table.assign(z_lens=table["z_phot"]).drop(columns="z_phot").reset_index(drop=True)


def test_a_lens_has_the_same_hosts_whoever_comes_with_it():
    hosts, lenses = draw_shaped(3000, 1, 0.0), as_lenses(draw_shaped(40, 2, 0.0))
    rows = match_conditions(hosts, lenses, 10, 3)
    order = np.random.default_rng(0).permutation(40)[:25]
    assert np.array_equal(match_conditions(hosts, lenses.iloc[order].reset_index(drop=True), 10, 3), rows[order])


def test_the_distance_is_that_of_the_axes_and_finds_poor_matches():
    hosts = draw_shaped(3000, 1, 0.0)
    lenses = as_lenses(hosts.iloc[:5])
    itself, offset = measure_match(hosts, lenses, np.arange(5)[:, None])
    assert np.all(itself == 0.0) and np.all(offset == 0.0)
    deeper = lenses.assign(depth_r=lenses["depth_r"] + 3 * MATCH_SCALES["depth_r"])
    n_axes = 8  # depth, magnitude, redshift, seeing in r, size, axis ratio, Sersic index, neighbours
    assert np.allclose(measure_match(hosts, deeper, np.arange(5)[:, None])[0], 3 / np.sqrt(n_axes))
    far = lenses.assign(mag_r=13.0, shape_r=20.0)
    good, poor = (measure_match(hosts, t, match_conditions(hosts, t, 20, 3)) for t in (lenses, far))
    least = (hosts["mag_r"].min() - 13.0) / MATCH_SCALES["mag_r"] / np.sqrt(n_axes)  # no host is brighter
    assert poor[0].min() >= least and poor[1].min() >= least
    assert np.all(poor[0].mean(axis=1) > good[0].mean(axis=1)) and np.all(poor[1] > good[1])


def test_hosts_are_like_the_lens_in_shape_and_neighbours():
    hosts, lenses = draw_shaped(6000, 1, 0.0), as_lenses(draw_shaped(200, 2, 0.0))
    rows = match_conditions(hosts, lenses, 20, 3)
    beside = lenses["fracflux_r"].to_numpy() > 0
    share = (hosts["fracflux_r"].to_numpy()[rows] > 0).mean(axis=1)
    assert share[~beside].mean() < 0.05 < 0.5 < share[beside].mean()
    difference = np.log10(hosts["shape_r"].to_numpy()[rows]) - np.log10(lenses["shape_r"].to_numpy())[:, None]
    assert np.sqrt((difference**2).mean()) < 0.11 and abs(difference.mean()) < 0.02


def test_an_unknown_column_of_a_lens_does_not_pull():
    hosts, lenses = draw_shaped(3000, 1, 0.0), as_lenses(draw_shaped(60, 2, 0.0))
    rows = match_conditions(hosts, lenses.assign(sersic=np.nan), 20, 3)
    assert abs(np.log10(hosts["sersic"].to_numpy()[rows]).mean() - np.log10(hosts["sersic"]).mean()) < 0.1
    assert np.isfinite(measure_match(hosts, lenses.assign(sersic=np.nan), rows)[0]).all()
