"""Two gates: what is in the data (D) and what the model finds of it (M), SPEC 8.6."""

import numpy as np
import pandas as pd

from lensaudit import stats


def compare_gates(populations, gate_threshold, threshold, conditions):
    """Cross D and M for several populations, overall and by condition.

    Parameters
    ----------
    populations : dict of name -> pandas.DataFrame
        With detectability, logit and the columns of `conditions`.
    gate_threshold, threshold : float
    conditions : dict of column -> edges

    Returns
    -------
    pandas.DataFrame
        As `tabulate_gates`; axis "all" is the whole population.
    """
    return pd.concat([
        tabulate_gates(table, gate_threshold, threshold, by, name)
        for name, table in populations.items() for by in (None, conditions)
    ], ignore_index=True)  # fmt: skip


def tabulate_gates(table, gate_threshold, threshold, by=None, population=""):
    """Cross the detectability gate D with the model M (SPEC 8.6).

    Parameters
    ----------
    table : pandas.DataFrame
        With detectability and logit, and the columns of `by`.
    gate_threshold, threshold : float
        On detectability and on the logit, at the same false-positive rate on the same negatives.
    by : dict of column -> edges, optional
        One column; without it one row over all.
    population : str
        Copied to the table.

    Returns
    -------
    pandas.DataFrame
        n, n_detectable, n_both, n_model_only, n_gate_only, n_neither; p_d = P(D), p_m_d = P(M|D), p_m_nd = P(M|not D)
        with 95 % Jeffreys bounds; recall = p_m_d p_d + p_m_nd (1 - p_d); missed_invisible and missed_visible, the
        shares of the misses that gate D does not and does see.
    """
    if by is None:
        return pd.DataFrame([_cross(table, gate_threshold, threshold) | {"population": population, "axis": "all",
                                                                         "lower_edge": np.nan, "upper_edge": np.nan}])
    rows = []
    for column, edges in by.items():
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            own = table[(table[column] >= low) & (table[column] < high)]
            where = {"population": population, "axis": column, "lower_edge": low, "upper_edge": high}
            rows.append(_cross(own, gate_threshold, threshold) | where)
    return pd.DataFrame(rows)


def _cross(table, gate_threshold, threshold):
    d = table["detectability"].to_numpy() > gate_threshold
    m = table["logit"].to_numpy() > threshold
    n, n_d, both, model = len(table), int(d.sum()), int((d & m).sum()), int((m & ~d).sum())
    missed = n - both - model
    out = {"n": n, "n_detectable": n_d, "n_both": both, "n_model_only": model, "n_gate_only": n_d - both,
           "n_neither": n - n_d - model}  # fmt: skip
    parts = (("p_d", n_d, n), ("p_m_d", both, n_d), ("p_m_nd", model, n - n_d), ("recall", both + model, n),
             ("missed_invisible", n - n_d - model, missed), ("missed_visible", n_d - both, missed))  # fmt: skip
    for name, k, total in parts:
        lower, upper = stats.jeffreys_interval(k, total)
        out |= {name: k / total if total else np.nan, f"{name}_lower": lower, f"{name}_upper": upper}
    return out
