"""How far the choice of prior moves the survey's completeness: the band over the named priors, and its verdict.

SPEC 7.5: a band wider than a stated limit is a NO-GO. The limits are those of the configuration, with their reason.
"""

import numpy as np

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import AXES, assign_cells
from lensaudit.audit.verdict import explain_weights
from lensaudit.selection.reweighting import read_prior, weigh_rows

PRIORS = ("collett", "cosmos_like", "flat", "brief")  # those of one way of making images
N_DRAWS = 1000


def measure_prior_band(cells, injections, grid, thresholds, point, config, priors=PRIORS):
    """Return the range of the survey-averaged completeness over the named priors, on the same injections.

    Parameters
    ----------
    cells : pandas.DataFrame
        Of the map, from `completeness.count_cells`.
    injections : pandas.DataFrame
        Of the map, with densities and footprint_weight.
    grid : dict of axis -> centres
    thresholds : dict of name -> float or dict
        On the logit; or the entries of thresholds.json.
    point : str
        Operating point.
    config : lensaudit.config.Config
        ``completeness.max_prior_width`` and ``max_prior_ratio`` are the limits.
    priors : sequence of str, path or dict

    Returns
    -------
    dict
        outcome (GO, NO-GO or inconclusive), reason, operating_point, priors (name -> completeness, lower, upper, 95 %,
        n_eff, max_weight), refused (name -> why), width (largest minus smallest) and ratio (largest over smallest) with
        95 % bounds, max_width, max_ratio.

    Raises
    ------
    UserError
        When the operating point is unknown or the injections lack footprint_weight.

    Notes
    -----
    The average of a prior is the found share, by weight, of its arcs that pass the product's cuts, over the cells that
    the map supports, each host with the survey's weight of its conditions. It is one query, and the guards are those of
    one: effective size by host, largest weight, bricks. Bounds resample bricks, for all priors together. NO-GO when a
    lower bound lies above its limit, GO when both upper bounds lie below and no prior is refused, else inconclusive; so
    too with fewer than two priors, which are no band.
    """
    if point not in thresholds or "footprint_weight" not in injections:
        wrong = f"operating point {point!r} unknown" if point not in thresholds else "no column footprint_weight"
        raise UserError(f"prior band: {wrong}; hand in the map's thresholds and its scored injections")
    cut = thresholds[point]["threshold"] if isinstance(thresholds[point], dict) else thresholds[point]
    support = cells[cells["threshold_name"] == point].sort_values(list(AXES), kind="stable")["sufficient"].to_numpy()
    number = assign_cells(injections, grid)
    rows = injections[(number >= 0) & support[number].astype(bool)].reset_index(drop=True)
    found, brick = rows["logit"].to_numpy(dtype=float) > cut, stats.encode_groups(rows["brickname"])
    passed, refused, sums = {}, {}, []
    for prior in map(read_prior, priors):
        weight = weigh_rows(rows, prior) * rows["footprint_weight"].to_numpy(dtype=float)
        own, why = _check_weights(weight, rows["host_index"], brick, config)
        if why:
            refused[prior["name"]] = why
            continue
        sums.append(np.stack([np.bincount(brick, weights=w) for w in (weight * found, weight)]))
        passed[prior["name"]] = {"completeness": float(weight @ found / weight.sum())} | own
    limits = {"max_width": config.completeness.max_prior_width, "max_ratio": config.completeness.max_prior_ratio}
    out = {"outcome": "inconclusive", "operating_point": point, "priors": passed, "refused": refused} | limits
    if len(passed) < 2:
        few = f"{len(passed)} of {len(priors)} priors pass the guards of the weights; a band needs two"
        return out | {"reason": few, "width": None, "ratio": None}
    generator = streams.make_stream(config.seed, "selection/prior band")
    draws = np.concatenate([m @ np.stack(sums).transpose(0, 2, 1) for m in
                            stats.draw_multiplicities(sums[0].shape[1], N_DRAWS, generator)], axis=1)  # fmt: skip
    band = _judge_band(passed, draws[..., 0] / draws[..., 1], limits)
    if band["outcome"] == "GO" and refused:  # those refused may be the ones that lie farthest away
        band |= {"outcome": "inconclusive", "reason": f"{', '.join(refused)}, which the guards refuse, may widen it"}
    return out | band


def _check_weights(weight, hosts, brick, config):
    """Return effective size and largest share of weights, and why a guard refuses them (empty where none does)."""
    total = weight.sum()
    if not total > 0:
        return {}, "no injection carries weight"
    own = {"n_eff": float(stats.kish_n_eff(weight, hosts)), "max_weight": float(weight.max() / total)}
    n_bricks = len(np.unique(brick[weight > 0]))
    least = config.completeness.min_bricks
    few = f"hosts from fewer than {least} bricks" if n_bricks < least else ""
    return own, explain_weights(own["n_eff"], own["max_weight"]) or few


def _judge_band(passed, draws, limits):
    """Return the verdict, and width and ratio with bounds from draws (n_priors, B); bounds go into `passed`."""
    for own, drawn in zip(passed.values(), draws, strict=True):
        own["lower"], own["upper"] = map(float, stats.summarise_draws(drawn))
    values = np.array([own["completeness"] for own in passed.values()])
    # Which is largest is decided once: that of each draw would make a band of noise alone.
    top, bottom = values.argmax(), values.argmin()
    floor = 1e-6  # a prior of which nothing is found has a very large ratio, not an infinite one
    bands = {"width": (values[top] - values[bottom], draws[top] - draws[bottom]),
             "ratio": (values[top] / max(values[bottom], floor), draws[top] / np.maximum(draws[bottom], floor))}
    out, wide, inside = {}, [], True
    for what, (value, drawn) in bands.items():
        lower, upper = map(float, stats.summarise_draws(drawn))
        out |= {what: float(value), f"{what}_lower": lower, f"{what}_upper": upper}
        limit = limits[f"max_{what}"]
        wide += [f"{what} {value:.3g} [{lower:.3g}, {upper:.3g}] above {limit:g}"] if lower > limit else []
        inside &= upper <= limit
    reason = " and ".join(wide) if wide else "" if inside else "a limit lies inside the interval of the band"
    return out | {"outcome": "NO-GO" if wide else "GO" if inside else "inconclusive", "reason": reason}
