"""Recall against prediction: predictive interval, tertile test, and the verdict's rule (SPEC 8.7)."""

import numpy as np

from lensaudit import rng as streams
from lensaudit import stats

TERTILE_AXES = {"theta_E": "theta_E", "seeing": "psfsize_r", "depth": "depth_r"}
N_PARAMETRIC = 2000
VERDICTS = ("closes", "does not close", "inconclusive", "too few")


def compare_recall(lenses, recovered, p, draws, config, name):
    """Compare observed recall with predicted, overall and in tertiles, and give the verdict.

    Parameters
    ----------
    lenses : pandas.DataFrame
        Supported lenses.
    recovered : array_like of bool, shape (n,)
    p : ndarray of shape (n,)
        Predicted P(recovered) of each lens.
    draws : ndarray of shape (B, n)
        Host-clustered bootstrap draws of `p`.
    config : lensaudit.config.Config
    name : str
        Names the random stream.

    Returns
    -------
    dict
        recall with its Jeffreys interval (shown, not used), predicted with the 95 % predictive interval of the recall,
        n_lenses, half_width, tertiles (bins, max_abs_z, limit), inside, tertiles_inside, closes, verdict.

    Notes
    -----
    Predictive variance = sum p (1 - p) / n^2 + variance of mean(p) over the bootstrap.
    """
    n, k = len(p), int(np.sum(recovered))
    if n == 0:
        return make_empty_row("too few")
    recall_lower, recall_upper = stats.jeffreys_interval(k, n)
    sigma = np.sqrt(np.sum(p * (1 - p)) / n**2 + np.var(draws.mean(axis=1)))
    predicted = float(p.mean())
    lower, upper = max(predicted - 1.96 * sigma, 0.0), min(predicted + 1.96 * sigma, 1.0)
    tertiles = compare_tertiles(lenses, recovered, p, draws, config, name)
    row = {"recall": k / n, "recall_lower": recall_lower, "recall_upper": recall_upper, "predicted": predicted,
           "predicted_lower": lower, "predicted_upper": upper, "n_lenses": n, "n_recovered": k,
           "half_width": 0.5 * (upper - lower), "z": (k / n - predicted) / max(sigma, 1e-12), "tertiles": tertiles,
           "inside": bool(lower <= k / n <= upper),
           "tertiles_inside": bool(tertiles["max_abs_z"] <= tertiles["limit"])}  # fmt: skip
    return row | decide_verdict(row, config)


def make_empty_row(verdict="too few"):
    """Return the row of a comparison that cannot be made."""
    numbers = ("recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper",
               "half_width", "z")  # fmt: skip
    return dict.fromkeys(numbers, np.nan) | {
        "n_lenses": 0, "n_recovered": 0, "tertiles": {"bins": [], "max_abs_z": np.nan, "limit": np.nan},
        "inside": False, "tertiles_inside": False, "closes": False, "verdict": verdict,
    }  # fmt: skip


def decide_verdict(row, config):
    """Apply 8.7's rule to a row with inside, tertiles_inside, half_width, n_lenses.

    Returns
    -------
    dict
        closes (bool) and verdict, one of `VERDICTS`. A recall or tertile outside is "does not close" however few the
        lenses; then fewer lenses than `closure.min_lenses` are "too few" and an interval wider than
        `closure.max_half_width` is "inconclusive".
    """
    if not (row["inside"] and row["tertiles_inside"]):
        verdict = "does not close"
    elif row["n_lenses"] < config.closure.min_lenses:
        verdict = "too few"
    elif row["half_width"] > config.closure.max_half_width:
        verdict = "inconclusive"
    else:
        verdict = "closes"
    return {"closes": verdict == "closes", "verdict": verdict}


def assign_tertiles(lenses):
    """Return axis name -> (tertile number of each lens, three edges pairs), cut at the lenses' own terciles."""
    out = {}
    for axis, column in TERTILE_AXES.items():
        values = lenses[column].to_numpy(dtype=float)
        edges = np.quantile(values, [0.0, 1 / 3, 2 / 3, 1.0])
        out[axis] = (np.searchsorted(edges[1:3], values, side="left"), edges)
    return out


def compare_tertiles(lenses, recovered, p, draws, config, name):
    """Compare recall and prediction in nine tertile bins; the limit of max |z| is from a parametric bootstrap.

    Returns
    -------
    dict
        bins (list of dict: axis, lower_edge, upper_edge, n, recall with Jeffreys bounds, predicted, z), max_abs_z, and
        limit, its 95 % value when lenses are recovered with probabilities drawn from the bootstrap of `p`.
    """
    member, rows = [], []
    recovered = np.asarray(recovered, dtype=float)
    for axis, (number, edges) in assign_tertiles(lenses).items():
        for third in range(3):
            use = number == third
            if use.any():
                member.append(use)
                lower, upper = stats.jeffreys_interval(recovered[use].sum(), use.sum())
                rows.append({"axis": axis, "lower_edge": edges[third], "upper_edge": edges[third + 1],
                             "n": int(use.sum()), "recall": recovered[use].mean(), "recall_lower": lower,
                             "recall_upper": upper, "predicted": p[use].mean()})  # fmt: skip
    member = np.asarray(member, dtype=float)
    size = member.sum(axis=1)
    variance = (member @ (p * (1 - p))) + np.var(draws @ member.T, axis=0)
    scale = np.sqrt(np.maximum(variance, 1e-9))
    z = (member @ (recovered - p)) / scale
    for row, value, width in zip(rows, z, 1.96 * scale / size, strict=True):
        row |= {"z": value, "predicted_lower": max(row["predicted"] - width, 0.0),
                "predicted_upper": min(row["predicted"] + width, 1.0)}  # fmt: skip
    generator = streams.make_stream(config.seed, "audit/closure/parametric", name)
    chosen = draws[generator.integers(0, len(draws), N_PARAMETRIC)]
    simulated = (generator.random(chosen.shape) < chosen).astype(float)
    limit = np.quantile(np.abs((simulated - p) @ member.T / scale).max(axis=1), 0.95)
    return {"bins": rows, "max_abs_z": float(np.abs(z).max()), "limit": float(limit)}
