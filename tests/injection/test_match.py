"""Twins' hosts are like the lens on average, although bright galaxies are rarer than faint ones."""

import numpy as np
import pandas as pd

from lensaudit.injection.hosts import match_conditions


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
