"""A small survey in memory: galaxies as `read_sweep` returns them, lens entries on some of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lensaudit.catalogs import sweeps
from lensaudit.config import Config


def build_galaxies(n, seed=0, side=6.0):
    rng = np.random.default_rng(seed)
    table = {name: rng.uniform(0.5, 30.0, n) for name, kind in sweeps.COLUMNS.items() if kind == "f"}
    table |= {name: np.zeros(n, np.int64) for name, kind in sweeps.COLUMNS.items() if kind == "i"}
    table |= {f"nobs_{band}": rng.integers(1, 15, n) for band in "grz"}
    table["galaxy_id"] = [f"10000-1-{k}" for k in range(n)]
    table["brickname"], table["sweep_file"], table["row_index"] = "0001p000", "sweep.fits", np.arange(n)
    table["type"] = rng.choice(["SER", "DEV", "REX", "EXP", "PSF"], n, p=[0.3, 0.25, 0.25, 0.1, 0.1])
    table["ra"], table["dec"] = rng.uniform(0, side, n), rng.uniform(-side / 2, side / 2, n)
    table["maskbits"] = rng.choice([0, 0, 0, 0, 0, 0, 2, 1 << 11, 1, 1 << 8], n)
    table["flux_z"] = np.where(rng.random(n) < 0.01, -1.0, rng.uniform(8.0, 300.0, n))
    table["flux_r"] = rng.uniform(2.0, 60.0, n)
    table["shape_r"], table["sersic"] = rng.lognormal(-0.7, 0.5, n), rng.choice([1.0, 2.5, 4.0, 6.0], n)
    table["shape_e1"], table["shape_e2"] = rng.normal(0, 0.2, n), rng.normal(0, 0.2, n)
    table["fracflux_r"] = rng.uniform(0, 0.52, n)
    table["ebv"] = rng.uniform(0.01, 0.1, n)
    for band in "grz":
        with np.errstate(invalid="ignore"):
            table[f"mag_{band}"] = 22.5 - 2.5 * np.log10(table[f"flux_{band}"])
    table["depth_r"], table["z_phot"], table["footprint_weight"] = rng.uniform(22.5, 25, n), 0.5, 1.0
    return pd.DataFrame(table)


def build_entries(galaxies, rows, tier="A", channel="imaging", catalog="lenscat"):
    chosen = galaxies.iloc[rows]
    return pd.DataFrame({
        "entry_id": [f"{catalog}:{k:06d}" for k in rows], "catalog": catalog, "name": "lens", "grade": "A",
        "ra": chosen["ra"].to_numpy(), "dec": chosen["dec"].to_numpy() + 0.3 / 3600, "z_lens": 0.4, "tier": tier,
        "channel": channel, "reference": "", "theta_E": np.nan, "lens_type": "galaxy", "is_compilation": False,
    })  # fmt: skip


@pytest.fixture(scope="session")
def galaxies():
    return build_galaxies(30000)


@pytest.fixture(scope="session")
def config():
    base = Config()
    sampling = dataclasses.replace(base.sampling, n_train=1500, n_val=500, n_test=500)
    return dataclasses.replace(base, sampling=sampling)


@pytest.fixture(scope="session")
def systems(galaxies):
    from lensaudit.catalogs import lenses

    extended = np.flatnonzero(galaxies["type"] != "PSF")
    entries = [build_entries(galaxies, extended[:240]), build_entries(galaxies, extended[240:400], "B"),
               build_entries(galaxies, extended[200:280], "S", "single_fibre", "spectroscopic"),
               build_entries(galaxies, extended[400:430], "S", "single_fibre", "fibres")]  # fmt: skip
    return lenses.group_systems(pd.concat(entries, ignore_index=True), 3.0)


@pytest.fixture(scope="session")
def stars():
    rng = np.random.default_rng(5)
    return pd.DataFrame({"ra": rng.uniform(0, 6, 60), "dec": rng.uniform(-3, 3, 60), "mag": rng.uniform(8, 16, 60)})


@pytest.fixture(scope="session")
def labels(galaxies):
    kinds = np.resize(["ring", "spiral", "merger"], 60)
    return pd.DataFrame({"ra": galaxies["ra"][-60:], "dec": galaxies["dec"][-60:], "label": kinds})


@pytest.fixture(scope="session")
def positives(systems, galaxies, config):
    from lensaudit.catalogs import crossmatch

    return crossmatch.match_lenses(systems, galaxies, config.crossmatch)[0]


@pytest.fixture(scope="session")
def selected(galaxies, systems, stars, labels, config):
    from lensaudit.catalogs import sampling

    return sampling.select_candidates(galaxies, systems, stars, labels, config.sampling, config.seed)


@pytest.fixture(scope="session")
def drawn(selected, positives, config):
    from lensaudit.catalogs import sampling

    return sampling.draw_samples(selected[0], positives, config)
