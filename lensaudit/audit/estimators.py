"""The blind signal-to-noise estimators held against truth, and their summary as the literature quotes it."""

import numpy as np
import pandas as pd

from lensaudit import stats


def validate_populations(injections, lenses, truth=None):
    """Validate arc_snr and arc_energy on injections and, when the truth table is handed in, on lenses.

    Parameters
    ----------
    injections : pandas.DataFrame
        With arc_snr_true.
    lenses : pandas.DataFrame
        Measured, with galaxy_id.
    truth : pandas.DataFrame, optional
        Truth table of the simulated sky: galaxy_id, snr_true.

    Returns
    -------
    pandas.DataFrame
        As `validate_estimators`, with estimator and population.
    """
    parts = {"injections": (injections, injections["arc_snr_true"])}
    if truth is not None:
        known = lenses["galaxy_id"].map(truth.drop_duplicates("galaxy_id").set_index("galaxy_id")["snr_true"])
        parts["lenses"] = (lenses, known)
    return pd.concat([
        validate_estimators(table, snr, name).assign(estimator=name, population=population)
        for population, (table, snr) in parts.items() for name in ("arc_snr", "arc_energy")
    ], ignore_index=True)  # fmt: skip


def validate_estimators(table, snr_true, column="arc_snr", edges=(1, 2, 5, 10, 20, 50, 100, 200)):
    """Compare a blind S/N with the ideal observer's where truth is known.

    Parameters
    ----------
    table : pandas.DataFrame
        With `column`.
    snr_true : array_like of shape (N,)
        arc_snr_true of injections, or snr_true of the simulated sky's truth table.

    Returns
    -------
    pandas.DataFrame
        Per bin of true S/N: n, median_true, median, lower, upper (16-84 %) of the blind value, ratio of the
        medians.
    """
    frame = pd.DataFrame({"true": np.asarray(snr_true, dtype=float), "blind": table[column].to_numpy(dtype=float)})
    frame["bin"] = pd.cut(frame["true"], edges)
    grouped = frame.dropna().groupby("bin", observed=True)
    out = grouped["blind"].quantile([0.16, 0.5, 0.84]).unstack().set_axis(["lower", "median", "upper"], axis=1)
    out = out.assign(n=grouped.size(), median_true=grouped["true"].median())
    return out.reset_index(drop=True).assign(ratio=lambda t: t["median"] / t["median_true"])


def summarise_snr(table, population, weights=None, edges=(0.0, 18.0, 19.0, 20.0, 99.0)):
    """Return mean, median and the fractions of arc_snr below 2, below 5 and above 20, overall and by host magnitude."""
    weights, rows = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=float), []
    mag, snr = table["mag_host"].to_numpy(dtype=float), table["arc_snr"].to_numpy(dtype=float)
    for low, high in [(-np.inf, np.inf), *zip(edges[:-1], edges[1:], strict=True)]:
        use = (mag >= low) & (mag < high) & (weights > 0)
        if not use.any():
            continue
        share = weights[use] / weights[use].sum()
        rows.append({"population": population, "mag_low": low, "mag_high": high, "n": int(use.sum()),
                     "mean": share @ snr[use], "median": float(stats.weighted_quantile(snr[use], 0.5, share)),
                     "below_2": share @ (snr[use] < 2), "below_5": share @ (snr[use] < 5),
                     "above_20": share @ (snr[use] > 20)})  # fmt: skip
    return pd.DataFrame(rows)
