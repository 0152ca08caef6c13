"""Galaxies of the simulated sky: early types from the velocity-dispersion function, late types, confusers, stars.

The fitted numbers and their sources stand in ``data_manifests/simsky_population.toml``.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gamma

from lensaudit.artifacts import load_dataset
from lensaudit.simsky import physics

TYPES = np.array(["SER", "DEV", "REX", "EXP"])
CONFUSERS = ("ring", "spiral", "edge_on", "merger", "blue_clumpy", "agn", "star_spike", "ghost", "cosmic_ray",
             "bad_column")  # fmt: skip


@functools.cache
def load_population():
    """Return the fitted numbers of the population as nested dicts."""
    return load_dataset("simsky_population")


def velocity_dispersion_function(sigma):
    """Comoving number density per unit velocity dispersion, Mpc^-3 (km/s)^-1 (Choi et al. 2007; Collett 2015)."""
    p = load_population()["early_types"]
    x = np.asarray(sigma) / p["sigma_star"]
    shape = x ** p["alpha"] * np.exp(-(x ** p["beta"])) * p["beta"] / gamma(p["alpha"] / p["beta"])
    return p["phi_star"] * 0.7**3 * shape / np.asarray(sigma)


@dataclass(frozen=True)
class EarlyGrid:
    """Cumulative number per deg^2 of early types over (sigma_v, z) cells that can be brighter than the limit."""

    sigma: np.ndarray
    z: np.ndarray
    cumulative: np.ndarray

    @property
    def density(self):
        return float(self.cumulative[-1])


@functools.cache
def make_early_grid(limit=21.0):
    """Tabulate early types per square degree with a fair chance of z mag < `limit`."""
    p = load_population()["early_types"]
    sigma = np.arange(p["sigma_min"], p["sigma_max"], 2.0) + 1.0
    z = np.arange(0.03, 1.3, 0.005) + 0.0025
    number = velocity_dispersion_function(sigma)[:, None] * physics.volume_element(z)[None, :] * 2.0 * 0.005
    mv = p["mv_pivot"] + p["mv_slope"] * np.log10(sigma / p["sigma_pivot"])
    mag = mv[:, None] + physics.distance_modulus(z)[None, :] + p["mz_offset"]
    number = np.where(mag < limit + 3.0 * p["mv_scatter"], number, 0.0)
    return EarlyGrid(sigma, z, np.cumsum(number.ravel()))


def draw_early_types(rng, n, limit=21.0):
    """Draw early-type galaxies; those fainter than `limit` in z are dropped, so fewer than `n` return.

    Parameters
    ----------
    rng : numpy.random.Generator
    n : int
        Draws from the grid of `make_early_grid`, i.e. grid density times the area.
    limit : float
        z mag.

    Returns
    -------
    pandas.DataFrame
        sigma_v [km/s], z_true, mag_g, mag_r, mag_z, mag_w1 (before extinction), R [arcsec, major axis], q, n_sersic,
        type, family.
    """
    p, grid = load_population()["early_types"], make_early_grid(limit)
    cell = np.searchsorted(grid.cumulative, rng.random(n) * grid.cumulative[-1])
    sigma = grid.sigma[cell // len(grid.z)] + rng.uniform(-1, 1, n)
    z = grid.z[cell % len(grid.z)] + rng.uniform(-0.0025, 0.0025, n)
    mv = p["mv_pivot"] + p["mv_slope"] * np.log10(sigma / p["sigma_pivot"]) + rng.normal(0, p["mv_scatter"], n)
    mag_z = mv + physics.distance_modulus(z) + p["mz_offset"]
    keep = mag_z < limit
    sigma, z, mv, mag_z = sigma[keep], z[keep], mv[keep], mag_z[keep]
    n = len(z)
    shared, own = rng.normal(size=n), rng.normal(size=n)
    rho = p["colour_correlation"]
    rz = np.interp(z, p["z_nodes"], p["rz_median"]) + np.interp(z, p["z_nodes"], p["rz_scatter"]) * shared
    gr = np.interp(z, p["z_nodes"], p["gr_median"]) + np.interp(z, p["z_nodes"], p["gr_scatter"]) * (
        rho * shared + np.sqrt(1 - rho**2) * own
    )
    size = np.minimum(p["size_pivot"] + p["size_slope"] * (mv + 22.5), p["size_max"]) + rng.normal(
        0, p["size_scatter"], n
    )
    radius = 10.0**size / (physics.angular_distance(z) * 1000.0) * 206264.8
    q = np.clip(1.0 - rng.rayleigh(np.maximum(p["axis_ratio"][0] - p["axis_ratio"][1] * sigma, 0.08)), 0.2, 1.0)
    return _tabulate_family(rng, p, "early", sigma, z, (mag_z + rz + gr, mag_z + rz, mag_z), radius, q)


def draw_late_types(rng, n, bright=14.5, limit=20.0):
    """Draw `n` late-type galaxies with bright < z mag < limit; columns as `draw_early_types`."""
    p = load_population()["late_types"]
    slope = p["count_slope"] * np.log(10)
    span = 1.0 - np.exp(-slope * (limit - bright))
    mag_z = limit + np.log1p(-span * rng.random(n)) / slope
    z = np.clip(p["z_median"] * 10 ** (0.08 * (mag_z - 18.5)) * np.exp(p["z_sigma"] * rng.normal(size=n)), 0.01, 1.1)
    rz = p["rz"][0] + p["rz"][1] * z + p["rz"][2] * rng.normal(size=n)
    gr = p["gr"][0] + p["gr"][1] * np.minimum(z, 0.5) + p["gr"][2] * rng.normal(size=n)
    radius = p["size_r18"] * 10 ** (p["size_slope"] * (mag_z - 18) + p["size_scatter"] * rng.normal(size=n))
    cosine, t = rng.random(n), p["thickness"]
    sigma = np.clip(110 * 10 ** (-0.06 * (mag_z - 18)) * np.exp(0.25 * rng.normal(size=n)), 40, 260)
    q = np.sqrt(t**2 + (1 - t**2) * cosine**2)
    return _tabulate_family(rng, p, "late", sigma, z, (mag_z + rz + gr, mag_z + rz, mag_z), radius, q)


def _tabulate_family(rng, p, family, sigma, z, magnitudes, radius, q):
    # What both families share: W1 by the z magnitude, sizes within the survey's range, TYPE and Sersic index.
    mag_g, mag_r, mag_z = magnitudes
    table = pd.DataFrame(
        {
            "sigma_v": sigma,
            "z_true": z,
            "mag_z": mag_z,
            "mag_r": mag_r,
            "mag_g": mag_g,
            "mag_w1": mag_z - rng.normal(p["zw1_mean"], p["zw1_scatter"], len(z)),
            "R": np.clip(radius, 0.15, 12.0),
            "q": q,
        }
    )
    table["family"] = family
    return _assign_types(rng, table, p)


def _assign_types(rng, table, p):
    # TYPE by z magnitude; small galaxies are more often REX. REX is a round exponential, as the survey fits it.
    mag = table["mag_z"].to_numpy()
    weight = np.stack([np.interp(mag, p["mag_nodes"], p[k]) for k in ("ser", "dev", "rex", "exp")], axis=1)
    weight[:, 2] *= np.clip((1.2 / table["R"].to_numpy()) ** 2, 0.1, 2.5)
    cumulative = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    kind = TYPES[(rng.random(len(table))[:, None] > cumulative).sum(axis=1).clip(max=3)]
    sersic = np.clip(p["sersic_median"] * np.exp(p["sersic_sigma"] * rng.normal(size=len(table))), 0.6, 6.0)
    table["type"] = kind
    table["n_sersic"] = np.select([kind == "DEV", kind == "SER"], [4.0, sersic], 1.0)
    table.loc[kind == "REX", "q"] = 1.0
    table["pa"] = rng.uniform(0, np.pi, len(table))  # of the major axis, counter-clockwise from +x of the image
    return table


def shape_confusers(rng, table):
    """Turn a few per cent of the galaxies into confusers and artefact carriers, in place.

    Column ``kind`` is drawn by the fractions of the population file; morphological kinds get the size, colour and
    catalogue type of their class, so that the survey's own columns betray them as much as real ones do.
    """
    p = load_population()["confusers"]
    edges = np.cumsum([p[k] for k in CONFUSERS])
    draw = np.searchsorted(edges, rng.random(len(table)))
    table["kind"] = np.append(np.array(CONFUSERS, dtype=object), "galaxy")[draw]
    for kind in ("ring", "spiral", "edge_on", "merger", "blue_clumpy", "agn"):
        table.loc[table["kind"] == kind, :] = style_confuser(rng, table[table["kind"] == kind].copy(), kind)
    return table


def style_confuser(rng, rows, kind):
    """Give rows of one confuser kind their magnitudes, colours, sizes and catalogue types."""
    n = len(rows)
    late = draw_late_types(rng, n, bright=16.0, limit=19.8)
    if kind in ("ring", "agn"):  # a red galaxy with something around or inside it
        rows["R"] = np.clip(rows["R"], 0.6, 2.5)
        rows["type"], rows["n_sersic"] = np.where(rng.random(n) < 0.6, "SER", "DEV"), rng.uniform(3.0, 6.0, n)
        rows.loc[rows["type"] == "DEV", "n_sersic"] = 4.0
        rows["q"] = rng.uniform(0.6, 1.0, n)
        return rows
    for name in ("sigma_v", "z_true", "mag_g", "mag_r", "mag_z", "mag_w1"):
        rows[name] = late[name].to_numpy()
    low, high, q_low, q_high = {
        "spiral": (0.9, 3.0, 0.4, 1.0),
        "edge_on": (1.0, 3.0, 0.10, 0.28),
        "merger": (0.8, 2.0, 0.4, 0.9),
        "blue_clumpy": (0.7, 1.6, 0.35, 0.9),
    }[kind]
    rows["R"], rows["q"] = rng.uniform(low, high, n), rng.uniform(q_low, q_high, n)
    blue = {"spiral": 0.60, "edge_on": 0.85, "merger": 0.7, "blue_clumpy": 0.25}[kind]
    rows["mag_r"] = rows["mag_z"] + rng.normal(0.7 * blue + 0.05, 0.1, n)
    rows["mag_g"] = rows["mag_r"] + rng.normal(blue, 0.1, n)
    rows["type"] = np.where(rng.random(n) < 0.7, "SER", "EXP")
    rows["n_sersic"] = np.where(rows["type"] == "SER", rng.uniform(0.6, 2.0, n), 1.0)
    rows["family"] = "late"
    return rows


def draw_galaxies(rng, n_per_brick, with_confusers=True):
    """Draw the galaxies of a set of bricks.

    Parameters
    ----------
    rng : numpy.random.Generator
    n_per_brick : ndarray of int
        Galaxies with z mag < 20 wanted in each brick; the early types come at their own density and late types fill.

    Returns
    -------
    pandas.DataFrame
        Columns of `draw_early_types` plus kind and brick (index into `n_per_brick`); about 15 per cent more rows with
        20 < z < 21.
    """
    p, grid = load_population()["field"], make_early_grid(20.0)
    n_bricks = len(n_per_brick)
    early = draw_early_types(rng, int(rng.poisson(grid.density * 0.0625 * n_bricks)), 20.0)
    early["brick"] = rng.integers(0, n_bricks, len(early))
    missing = np.maximum(n_per_brick - np.bincount(early["brick"], minlength=n_bricks), 20)
    late = draw_late_types(rng, int(missing.sum()))
    late["brick"] = np.repeat(np.arange(n_bricks), missing)
    bright = pd.concat([early, late], ignore_index=True)
    bright["kind"] = "galaxy"
    if with_confusers:
        bright = shape_confusers(rng, bright)
    faint_late = draw_late_types(rng, n_bricks * p["n_faint"] // 2, 20.0, 21.0)
    faint_early = draw_early_types(rng, int(grid.density * 0.0625 * n_bricks * 2), 21.0)
    faint_early = faint_early[faint_early["mag_z"] > 20.0][: n_bricks * p["n_faint"] // 2]
    faint = pd.concat([faint_late, faint_early], ignore_index=True)
    faint["kind"] = "galaxy"
    faint["brick"] = rng.permutation(len(faint)) % n_bricks
    return pd.concat([bright, faint], ignore_index=True)
