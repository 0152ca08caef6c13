"""Closure over many skies: the chi-squared rule and the bias rule of SPEC 8.7, and its stored table.

One sky tells a shift of the recall from its binomial noise only down to some 0.08; many skies tell a bias of the method
from that noise. Skies are made and closed by ``benchmarks/closure_skies.py``, whose table this module reads.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as sps

from lensaudit.artifacts import UserError, find_root, read_json

MIN_SKIES, MIN_TRAINED = 20, 5  # skies, and among them those with a detector of their own
MAX_BIAS = 0.05  # of recall - predicted, in its 95 % interval
LEVEL = 0.95
HEADLINE = ("headline", "fpr_1e-2")  # the row and operating point `make verify` fails on
STORED = "benchmarks/results/closure_skies.json"


def judge_skies(z, difference):
    """Apply the multi-sky rule to one row.

    Parameters
    ----------
    z : array_like of shape (K,)
        (recall - predicted) / sigma of each sky, sigma of the predictive interval.
    difference : array_like of shape (K,)
        recall - predicted.

    Returns
    -------
    dict
        n_skies, chi2 with the central 95 % of chi^2_K (chi2_lower, chi2_upper) and chi2_inside; bias (the mean
        difference) with its 95 % interval (Student's t over skies) and bias_inside; passes, both with at least
        `MIN_SKIES` skies. A sky without a comparison (NaN) makes the row fail: none may be left out.

    Raises
    ------
    UserError
        When the two differ in length.
    """
    z, difference = np.asarray(z, dtype=float), np.asarray(difference, dtype=float)
    if z.shape != difference.shape or z.ndim != 1:
        raise UserError(f"z has shape {z.shape} and recall - predicted {difference.shape}; give one of each per sky")
    known = np.isfinite(z) & np.isfinite(difference)
    n, own = int(known.sum()), difference[known]
    lower, upper = sps.chi2.interval(LEVEL, n) if n else (np.nan, np.nan)
    chi2, error = float(np.sum(z[known] ** 2)), sps.sem(own) if n > 1 else np.nan
    low, high = sps.t.interval(LEVEL, n - 1, loc=own.mean(), scale=max(error, 1e-300)) if n > 1 else (np.nan, np.nan)
    out = {"n_skies": n, "n_empty": int((~known).sum()), "chi2": chi2, "chi2_lower": float(lower),
           "chi2_upper": float(upper), "chi2_inside": bool(lower <= chi2 <= upper),
           "bias": float(own.mean()) if n else np.nan, "bias_lower": float(low), "bias_upper": float(high),
           "bias_inside": bool(low >= -MAX_BIAS and high <= MAX_BIAS)}  # fmt: skip
    return out | {"passes": out["chi2_inside"] and out["bias_inside"] and n >= MIN_SKIES and n == len(z)}


def summarise_skies(rows):
    """Judge every row at every operating point.

    Parameters
    ----------
    rows : pandas.DataFrame
        One line per sky, row and operating point: seed, row, point, recall, predicted, z, inside.

    Returns
    -------
    dict of operating point -> dict of row -> dict
        Of `judge_skies`, with n_inside, the skies whose recall lies in its own 95 % interval, and the mean recall and
        prediction.

    Raises
    ------
    UserError
        For a missing column or a sky that stands twice in a row.
    """
    needed = ("seed", "row", "point", "recall", "predicted", "z", "inside")
    missing = [name for name in needed if name not in rows]
    if missing:
        raise UserError(f"table of skies: column(s) {', '.join(missing)} missing; run the benchmark again")
    twice = rows.duplicated(["seed", "row", "point"])
    if twice.any():
        raise UserError(f"table of skies: seed {rows.loc[twice, 'seed'].iloc[0]} stands twice in one row")
    out = {}
    for (point, name), own in rows.groupby(["point", "row"], sort=False):
        recall, predicted = own["recall"].astype(float), own["predicted"].astype(float)
        verdict = judge_skies(own["z"].astype(float), recall - predicted)
        verdict |= {"n_inside": int(own["inside"].astype(bool).sum()), "recall": float(recall.mean()),
                    "predicted": float(predicted.mean())}  # fmt: skip
        out.setdefault(point, {})[name] = verdict
    return out


def read_skies(path=None):
    """Read the stored table of skies and judge it anew.

    Parameters
    ----------
    path : path, optional
        The benchmark's own place by default.

    Returns
    -------
    dict or None
        points (of `summarise_skies`, all skies, for the rule), trained and frozen (the same of the skies with and
        without a detector of their own, whose means differ), n_skies, n_trained, detectors (their ids), passes (the
        headline row, with at least `MIN_TRAINED` trained skies); None when there is no table yet.

    Raises
    ------
    UserError
        When the table cannot be read.
    """
    path = Path(find_root() / STORED if path is None else path)
    if not path.is_file():
        return None
    stored = read_json(path)
    try:
        rows = pd.DataFrame(stored["rows"], columns=stored["columns"])
        trained = [sky["seed"] for sky in stored["skies"] if sky["trained"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path.name}: not a table of skies ({error}); run benchmarks/closure_skies.py again") from None
    points = summarise_skies(rows)
    row, point = HEADLINE
    good = bool(points.get(point, {}).get(row, {}).get("passes"))
    own = rows["seed"].isin(trained)
    return {"points": points, "trained": summarise_skies(rows[own]), "frozen": summarise_skies(rows[~own]),
            "n_skies": len(stored["skies"]), "n_trained": len(trained),
            "detectors": sorted({str(sky["detector"]) for sky in stored["skies"]}),
            "passes": good and len(trained) >= MIN_TRAINED}  # fmt: skip


def describe_skies(summary):
    """Return the rule's outcome as lines of text, one per operating point and row."""
    lines = []
    for point, rows in summary["points"].items():
        for name, row in rows.items():
            lines.append(
                f"{point} {name}: chi2 {row['chi2']:.1f} of {row['n_skies']} skies "
                f"[{row['chi2_lower']:.1f}, {row['chi2_upper']:.1f}], recall - predicted {row['bias']:+.3f} "
                f"[{row['bias_lower']:+.3f}, {row['bias_upper']:+.3f}]: {'passes' if row['passes'] else 'fails'}")
    return lines


def check_skies(path=None):
    """Apply the rule to the stored table, as ``make verify`` does; the build of the paper does not.

    Returns
    -------
    str
        What was found; without a stored table that nothing was judged.

    Raises
    ------
    UserError
        When the headline row fails.
    """
    summary = read_skies(path)
    if summary is None:
        return "verify: no table of skies is stored; run benchmarks/closure_skies.py"
    lines = describe_skies(summary)
    if not summary["passes"]:
        row, point = HEADLINE
        own = [line for line in lines if line.startswith(f"{point} {row}:")] or [f"{point} {row}: not in the table"]
        raise UserError(f"closure over {summary['n_skies']} skies, {summary['n_trained']} with own training (the rule "
                        f"asks for {MIN_TRAINED}), does not meet the rule of SPEC 8.7: {own[0]}")
    return "\n".join(f"verify: {line}" for line in lines)
