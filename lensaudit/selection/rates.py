"""How many lenses there are on the sky, and how many of them are found."""

import numpy as np
import pandas as pd

from lensaudit import photometry, rng, stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import make_edges
from lensaudit.audit.verdict import GRID_MIN_PRECISION
from lensaudit.injection.population import (
    ARCSEC,
    draw_axis_ratio,
    draw_parents,
    draw_sources,
    load_prior,
    sigma_to_theta,
    source_density,
    velocity_dispersion_function,
    visible_fraction,
    volume_element,
)
from lensaudit.selection.cells import broadcast_points
from lensaudit.selection.footprint import explain_missing, find_conditions

SQUARE_DEGREE = (np.pi / 180.0) ** 2  # steradian
MAX_THETA = 10.0  # arcsec; rates given as functions are integrated up to there, beyond any galaxy's Einstein radius


def count_parents(prior):
    """Return the number per deg^2 of sources behind the area of a deflector in which the prior draws them.

    Notes
    -----
    The integral over sigma_v, z_lens and z_source of the velocity-dispersion function, the comoving volume, the chance
    to be brighter than the parent sample's limit, the number of sources per steradian and the area
    pi (high^2 - low^2) theta_E^2 (Collett 2015).
    """
    d = prior["deflector"]
    sigma, z = np.arange(d["sigma"][0], d["sigma"][1], 5.0) + 2.5, np.arange(d["z"][0], d["z"][1], 0.025) + 0.0125
    z_source, sources = source_density(prior)
    theta = sigma_to_theta(sigma[:, None, None], z[:, None], z_source, prior)
    area = np.where((theta > d["theta_E"][0]) & (theta < d["theta_E"][1]), (theta / ARCSEC) ** 2, 0.0) @ sources
    deflectors = velocity_dispersion_function(sigma, prior)[:, None] * volume_element(z, prior) * 5.0 * 0.025
    deflectors = deflectors * visible_fraction(sigma[:, None], z, prior)
    low, high = prior["source"]["position"]
    return float((deflectors * area).sum() * np.pi * (high**2 - low**2) * SQUARE_DEGREE)


def make_rate(selection, prior=None, n=50_000, seed=0, transmission=0.92):
    """Return how many lenses per deg^2 pass the product's cuts in each cell of its grid: a Collett-type rate.

    Parameters
    ----------
    selection : lensaudit.selection.composition.Selection
    prior : str or dict, optional
        With a velocity-dispersion function; the product's own by default.
    n : int
        Parents drawn.
    seed : int
    transmission : float
        Of the Galaxy in the r band, taken alike everywhere (E(B-V) of about 0.04).

    Returns
    -------
    pandas.DataFrame
        theta_E, seeing, depth, rate [per deg^2 if all of it had that seeing and depth], sigma (of the drawing). Lenses
        beyond the grid's theta_E are rows of their own, outside every support.

    Notes
    -----
    Takes about 25 s with the default `n` and grid: keep the table. Fewer parents are as much quicker, and sigma grows.

    Parents as `population.draw_parents`, round or elliptical as their velocity dispersion says; what passes follows
    from `forecast.forecast_arcs`, which takes sources as smooth discs (2 per cent in magnification, 10 in S/N).
    """
    from lensaudit.injection.forecast import bound_arcs, forecast_arcs  # loads torch, which no query needs

    product = selection.product
    prior = load_prior(prior or product.description["prior_name"])
    if prior["deflector"]["kind"] != "vdf":
        raise UserError(f"prior {prior['name']}: a rate needs deflector.kind = 'vdf'; use collett or cosmos_like")
    table, per_parent = _draw_candidates(prior, n, seed), count_parents(prior) / n
    edges = np.concatenate([[0.0], make_edges(product.axes["theta_E"]), [np.inf]])
    centres = np.concatenate([[0.5 * edges[1]], product.axes["theta_E"], [edges[-2] + 1.0]])
    cuts, rows = product.description["cuts"], []
    for seeing in product.axes["seeing"]:
        for depth in product.axes["depth"]:
            signal = photometry.mag_to_flux(table["mag_source_r"]) * transmission
            signal = signal * np.sqrt(photometry.depth_to_ivar(depth))
            mu, snr = bound_arcs(table, seeing, signal)
            near = (mu > cuts["min_mu"]) & (snr > cuts["min_arc_snr_true"])
            own = {k: v[near] for k, v in table.items()}
            limits = (cuts["min_mu"], cuts["min_arc_snr_true"])
            arcs = forecast_arcs(own, np.full(near.sum(), seeing), signal[near], *limits)
            count = np.histogram(own["theta_E"][arcs["passed"] & (arcs["multiplicity"] > 1)], edges)[0]
            rows.append(pd.DataFrame({"theta_E": centres, "seeing": seeing, "depth": depth, "rate": count * per_parent,
                                      "sigma": np.sqrt(count) * per_parent}))  # fmt: skip
    rows = pd.concat(rows, ignore_index=True)
    return rows[(rows["rate"] > 0) | rows["theta_E"].isin(product.axes["theta_E"])].reset_index(drop=True)


def _draw_candidates(prior, n, seed):
    """Draw parents with sources and shapes, columns as `forecast_arcs` takes them; hopeless ones are left out."""
    d = prior["deflector"]
    u = rng.draw_uniforms(seed, "selection/rate", np.arange(n), 21)
    table = draw_parents(u[:, :4], prior)
    table |= draw_sources(u[:, 10:], table["z_source"], prior)
    low, high = prior["source"]["position"]
    radius = table["theta_E"] * np.sqrt(low**2 + (high**2 - low**2) * u[:, 4])
    angle, (a, b) = 2.0 * np.pi * u[:, 5], d["axis_ratio"]
    shear, turn = d["shear"] * np.sqrt(-2.0 * np.log1p(-u[:, 6])), 2.0 * np.pi * u[:, 7]  # two normal components
    table |= {"source_x": radius * np.cos(angle), "source_y": radius * np.sin(angle), "phi": np.pi * u[:, 8],
              "q": draw_axis_ratio(u[:, 9], np.maximum(a - b * table["sigma_v"], 0.05)),
              "gamma1": shear * np.cos(turn), "gamma2": shear * np.sin(turn)}  # fmt: skip
    keep = table["z_source"] > table["z_lens"]
    return {k: v[keep] for k, v in table.items()}


def tabulate_rate(rate, centres):
    """Return a rate given as a function as rows of theta_E: the cells of a grid, and what lies below and beyond them.

    Parameters
    ----------
    rate : callable
        ``rate(theta_E)``, ndarrays [arcsec] to lenses per deg^2 and arcsec of theta_E.
    centres : sequence of float
        theta_E of the grid.

    Returns
    -------
    pandas.DataFrame
        theta_E, rate [per deg^2], the integral over each bin up to `MAX_THETA` (Gauss-Legendre, 16 nodes).

    Raises
    ------
    UserError
        When the function takes other arguments, or returns no numbers or another shape.
    """
    edges = make_edges(centres)
    last, step = edges[-1], edges[-1] - edges[-2]
    edges = np.concatenate([[0.0], edges, np.append(np.arange(last + step, MAX_THETA, step), max(MAX_THETA, 2 * last))])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    middle, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    points = middle[:, None] + half[:, None] * nodes
    try:
        density = np.broadcast_to(np.asarray(rate(points), dtype=float), points.shape)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"rate: fails as a function of an array of theta_E ({error}); it returns lenses per deg^2 and "
                        "arcsec, or use the table of make_rate(selection)") from None  # fmt: skip
    return pd.DataFrame({"theta_E": middle, "rate": (density * half[:, None]) @ weights})


def count_lenses(selection, rate, footprint=None, threshold=None, prior=None, level=0.95, max_missing=0.1,
                 threshold_error=False):  # fmt: skip
    """Return how many lenses per deg^2 of a footprint are found, against Einstein radius.

    Parameters
    ----------
    selection : lensaudit.selection.composition.Selection
    rate : pandas.DataFrame or callable
        theta_E, rate [lenses per deg^2 at that theta_E that pass the product's cuts], for each seeing and depth of the
        grid where the rate depends on them (`make_rate`); sigma where known. Or a function ``rate(theta_E)`` of such
        lenses per deg^2 and arcsec, alike in all conditions; `tabulate_rate` integrates it over the cells.
    footprint : pandas.DataFrame or path, optional
        For `footprint.read_footprint`; the footprint stored with the product by default.
    threshold, prior, level, threshold_error
        As for ``query``.
    max_missing : float
        Largest share of the rate that may lie outside the support.

    Returns
    -------
    pandas.DataFrame
        theta_E, rate, counts, lower, upper [per deg^2], share_missing: lenses outside the support are in rate and not
        in counts. attrs: total, total_lower, total_upper, share_missing, and max_observed, the number of observed
        lenses up to which the total is precise enough to be compared with them (mean^2 / variance >= 4 per lens).

    Raises
    ------
    UserError
        When the support misses more than `max_missing` of the rate, or the rate is neither of these.

    Notes
    -----
    The interval is that of the expected number; the Poisson scatter of an observed one comes on top.
    """
    rate = tabulate_rate(rate, selection.product.axes["theta_E"]) if callable(rate) else rate
    cells = _spread_rate(rate, find_conditions(selection, footprint))
    points = (cells["theta_E"], cells["seeing"], cells["depth"])
    found = selection.query(*points, threshold=threshold, prior=prior, level=level)
    number = cells["rate"].to_numpy()
    missing = np.where(found["in_support"], 0.0, number)
    share = missing.sum() / number.sum() if number.sum() > 0 else 1.0
    if share > max_missing:
        why = explain_missing(found, missing)
        raise UserError(f"expected_counts: {share:.0%} of the rate lies outside the support (mostly: {why}); more "
                        f"than the {max_missing:.0%} allowed by max_missing")  # fmt: skip
    p = found["p"].to_numpy()
    drawn = selection.draw_centred(broadcast_points(*points), p, threshold, prior, threshold_error) * number
    moved = np.nan_to_num(p) * cells["sigma"].to_numpy() * _draw_normals(len(cells), len(drawn))
    drawn += moved - moved.mean(axis=0)
    theta, inverse = np.unique(cells["theta_E"], return_inverse=True)
    member = (inverse[:, None] == np.arange(len(theta))).astype(float)
    counts = np.nan_to_num(p) * number
    lower, upper = np.maximum(stats.summarise_draws(drawn @ member, level), 0.0)
    per_theta = number @ member
    out = pd.DataFrame({"theta_E": theta, "rate": per_theta, "counts": counts @ member, "lower": lower, "upper": upper,
                        "share_missing": missing @ member / np.where(per_theta > 0, per_theta, np.nan)})  # fmt: skip
    total = drawn.sum(axis=1)
    low, high = np.maximum(stats.summarise_draws(total, level), 0.0)
    precision = counts.sum() ** 2 / max(total.var(), 1e-300)
    out.attrs.update(selection.describe(threshold, prior, level, threshold_error) | {
        "total": float(counts.sum()), "total_lower": float(low), "total_upper": float(high),
        "share_missing": float(share), "max_observed": float(precision / GRID_MIN_PRECISION),
    })  # fmt: skip
    return out


def _draw_normals(n_cells, n):
    return rng.make_stream(0, "selection/rate/sigma").standard_normal((n, n_cells))


def _spread_rate(rate, conditions):
    """Return the rate in every cell of theta_E and conditions: the rate there times the share of the footprint."""
    if not isinstance(rate, pd.DataFrame):
        raise UserError(f"rate: a {type(rate).__name__} is none; give a table with theta_E and rate, such as that of "
                        "make_rate, or a function of theta_E")  # fmt: skip
    missing = [c for c in ("theta_E", "rate") if c not in rate]
    if missing:
        raise UserError(f"rate: column {missing[0]} is missing; give theta_E, rate and, if they matter, seeing, depth")
    if not (np.isfinite(rate["rate"]) & (rate["rate"] >= 0)).all() or not rate["rate"].sum() > 0:
        raise UserError("rate: the column rate must hold numbers of 0 or more, some of them positive")
    rate = rate.assign(sigma=rate["sigma"] if "sigma" in rate else 0.0)
    used = conditions[conditions["weight"] > 0]
    if {"seeing", "depth"} <= set(rate):
        rate = rate.round({"seeing": 6, "depth": 6})
        mean = rate.groupby("theta_E", as_index=False)[["rate", "sigma"]].mean()
        inside = used.dropna().round({"seeing": 6, "depth": 6}).merge(rate, on=["seeing", "depth"], how="left")
        if inside["rate"].isna().any():
            row = inside[inside["rate"].isna()].iloc[0]
            raise UserError(f"rate: no row at seeing {row['seeing']:g}, depth {row['depth']:g}; use the grid's centres")
        outside = used[used["seeing"].isna()].merge(mean, how="cross")  # unknown there: the mean of the grid
        cells = pd.concat([inside, outside], ignore_index=True)
    else:
        cells = used.merge(rate[["theta_E", "rate", "sigma"]], how="cross")
    return cells.assign(rate=cells["rate"] * cells["weight"], sigma=cells["sigma"] * cells["weight"])
