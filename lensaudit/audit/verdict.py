"""Recall against prediction: predictive interval, tertile test, and the verdict's rule (SPEC 8.7)."""

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats

TERTILE_AXES = {"theta_E": "theta_E", "seeing": "psfsize_r", "depth": "depth_r"}
N_PARAMETRIC = 2000
VERDICTS = ("closes", "does not close", "inconclusive", "too few", "refused")  # refused: a guard of the grid row fails
MUST_FAIL = ("random_hosts", "faint")
DIAGNOSES = ("calibrated", "extended", "oracle")  # rows on other weights or covariates than the headline
UNSPOILED = "unspoiled"  # the correct injections that controls are judged against
# Guards of SPEC 8.3.
GRID_MIN_N_EFF = 30.0
GRID_MAX_WEIGHT = 0.05  # of the sum
MIN_APART = 2.0  # a control is caught only where it also lies this far from correct injections, in their scatters
GRID_MIN_PRECISION = 4.0  # mu^2 / var of the prediction, per lens


def compare_recall(lenses, recovered, p, draws, config, name, variance=None):
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
    variance : ndarray of shape (n,), optional
        Binomial variance of each lens where p (1 - p) is not an unbiased estimate of it.

    Returns
    -------
    dict
        recall with its Jeffreys interval (shown, not used), predicted with the 95 % predictive interval of the recall,
        predicted_sigma (bootstrap scatter of the prediction alone), n_lenses, half_width (before the interval is cut
        to [0, 1]), tertiles (bins, max_abs_z, limit), inside, tertiles_inside, closes, verdict.

    Notes
    -----
    Predictive variance = sum p (1 - p) / n^2 + variance of mean(p) over the bootstrap.
    """
    n, k = len(p), int(np.sum(recovered))
    if n == 0:
        return make_empty_row("too few")
    recall_lower, recall_upper = stats.jeffreys_interval(k, n)
    variance = p * (1 - p) if variance is None else variance
    own = float(np.std(draws.mean(axis=1)))
    sigma = np.sqrt(np.sum(variance) / n**2 + own**2)
    predicted = float(p.mean())
    lower, upper = max(predicted - 1.96 * sigma, 0.0), min(predicted + 1.96 * sigma, 1.0)
    tertiles = compare_tertiles(lenses, recovered, p, draws, config, name, variance)
    row = {"recall": k / n, "recall_lower": recall_lower, "recall_upper": recall_upper, "predicted": predicted,
           "predicted_lower": lower, "predicted_upper": upper, "predicted_sigma": own, "n_lenses": n, "n_recovered": k,
           "half_width": 1.96 * sigma, "z": (k / n - predicted) / max(sigma, 1e-12), "tertiles": tertiles,
           "inside": bool(lower <= k / n <= upper),
           "tertiles_inside": bool(tertiles["max_abs_z"] <= tertiles["limit"])}  # fmt: skip
    return row | decide_verdict(row, config)


def make_empty_row(verdict="too few"):
    """Return the row of a comparison that cannot be made."""
    numbers = ("recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper",
               "predicted_sigma", "half_width", "z")  # fmt: skip
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


def compare_tertiles(lenses, recovered, p, draws, config, name, variance=None):
    """Compare recall and prediction in nine tertile bins; the limit of max |z| is from a parametric bootstrap.

    Returns
    -------
    dict
        bins (list of dict: axis, lower_edge, upper_edge, n, recall with Jeffreys bounds, predicted, z), max_abs_z, and
        limit, its 95 % value when lenses are recovered with `p`, the binomial noise scaled to `variance` (as in
        `compare_recall`), and `p` itself scatters as its bootstrap.
    """
    variance = p * (1 - p) if variance is None else variance
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
    scale = np.sqrt(np.maximum(member @ variance + np.var(draws @ member.T, axis=0), 1e-9))
    z = (member @ (recovered - p)) / scale
    for row, value, width in zip(rows, z, 1.96 * scale / size, strict=True):
        row |= {"z": value, "predicted_lower": max(row["predicted"] - width, 0.0),
                "predicted_upper": min(row["predicted"] + width, 1.0)}  # fmt: skip
    generator = streams.make_stream(config.seed, "audit/closure/parametric", name)
    chosen = draws[generator.integers(0, len(draws), N_PARAMETRIC)]
    stretch = np.sqrt(variance / np.maximum(p * (1 - p), 1e-12))
    residual = stretch * ((generator.random(chosen.shape) < p) - p) + chosen - p
    limit = np.quantile(np.abs(residual @ member.T / scale).max(axis=1), 0.95)
    return {"bins": rows, "max_abs_z": float(np.abs(z).max()), "limit": float(limit)}


def explain_weights(n_eff, max_weight):
    """Return why the guards of SPEC 8.3 refuse weights of an effective size and a largest share, empty if they do not.

    The third guard, on the precision of counts and closure, is `check_guard`'s.
    """
    if not n_eff > 0:
        return "no injection carries weight"
    if n_eff < GRID_MIN_N_EFF:
        return f"effective size {n_eff:.1f} below {GRID_MIN_N_EFF:g}"
    if max_weight > GRID_MAX_WEIGHT:
        return f"one injection has {max_weight:.1%} of the weight (effective size {n_eff:.1f})"
    return ""


def check_guard(row):
    """Apply the guards of SPEC 8.3 to a reweighted row: guard_ok, and a refused verdict where one fails."""
    precise = row["precision"] >= GRID_MIN_PRECISION * row["n_lenses"]
    guard = bool(precise and not explain_weights(row["n_eff"], row["max_weight"]))
    return {"guard_ok": guard} | ({} if guard else {"closes": False, "verdict": "refused"})


def judge_controls(controls):
    """Say which controls are caught: a row that does not close where correct injections of that number do not fail.

    Parameters
    ----------
    controls : dict of name -> {"conditional": row, "twins": row}
        Among them "unspoiled", which is never caught itself.

    Returns
    -------
    dict of name -> dict
        With must_fail, caught, caught_by, and in each row z_unspoiled: predicted against that of the correct
        injections, over both bootstrap scatters (common hosts and arcs make it too small rather than too large).
    """
    out = {}
    for kind, rows in controls.items():
        entry, caught = {"must_fail": kind in MUST_FAIL}, []
        for label, row in rows.items():
            right = controls[UNSPOILED][label]
            sigma = max(np.hypot(row["predicted_sigma"], right["predicted_sigma"]), 1e-12)
            entry[label] = row | {"z_unspoiled": (row["predicted"] - right["predicted"]) / sigma}
            apart = abs(entry[label]["z_unspoiled"]) > MIN_APART
            if row["verdict"] == "does not close" and right["verdict"] != "does not close" and apart:
                caught.append(label)
        out[kind] = entry | {"caught": bool(caught), "caught_by": caught}
    return out


def tabulate_closure(closure, detector="audited"):
    """Return the closure as a tidy table: one row per operating point and kind of row, for figures and the paper.

    Returns
    -------
    pandas.DataFrame
        detector, operating_point, row (main, twins, grid, control name / conditional, calibrated or twins), recall...,
        verdict; guard_ok of the grid row; reason of a row that cannot be computed for want of a selection.
    """
    keys = ("recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper", "n_lenses",
            "n_unsupported", "z", "half_width", "closes", "verdict")  # fmt: skip
    points = {"headline": closure} | {k: v for k, v in closure.items() if k.startswith("fpr_")}
    rows = []
    for point, entry in points.items():
        parts = {"main": entry} | {kind: entry[kind] for kind in (*DIAGNOSES, "twins", "grid")}
        for kind, control in entry["controls"].items():
            parts |= {f"{kind} / {label}": control[label]
                      for label in ("conditional", "calibrated", "twins") if label in control}
        for name, part in parts.items():
            rows.append({"detector": detector, "operating_point": point, "fpr": entry["fpr"], "row": name,
                         "n_eff": part.get("n_eff"), "guard_ok": part.get("guard_ok"),
                         "reason": part.get("reason", "")}
                        | {key: part.get(key) for key in keys}
                        | {"max_abs_z": part["tertiles"]["max_abs_z"], "limit": part["tertiles"]["limit"]})  # fmt: skip
    return pd.DataFrame(rows)


def tabulate_tertiles(closure):
    """Return the headline's nine tertile bins as a table."""
    return pd.DataFrame(closure["tertiles"]["bins"])


def describe_closure(closure):
    """Return the verdict as text for the terminal, red when it does not close or a control that must fail passed."""
    if closure["threshold"] is None:
        return f"closure at FPR {closure['fpr']:g}: too few negatives to set a threshold"
    interval = f"[{closure['predicted_lower']:.3f}, {closure['predicted_upper']:.3f}]"
    text = (f"closure at FPR {closure['fpr']:g}: recall {closure['recall']:.3f} of {closure['n_lenses']} lenses, "
            f"predicted {closure['predicted']:.3f} {interval}, {closure['n_unsupported']} unsupported: "
            f"{closure['verdict']}")  # fmt: skip
    missed = [kind for kind, control in closure["controls"].items() if control["must_fail"] and not control["caught"]]
    if missed and closure["verdict"] != "too few":
        text += f"; control(s) {', '.join(missed)} must be caught and were not"
    bad = closure["verdict"] == "does not close" or (missed and closure["verdict"] != "too few")
    return f"\033[31m{text}\033[0m" if bad else text
