"""Two gates: what is in the data (D) and what the model finds of it (M), SPEC 8.6."""

import numpy as np
import pandas as pd

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.detectability import fit_gate
from lensaudit.audit.thresholds import parent_weights

GATE_FPRS = (0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3)


def set_gates(negatives, min_exceedances):
    """Threshold gate D at several false-positive rates on the same negatives.

    Parameters
    ----------
    negatives : pandas.DataFrame
        N1 validation negatives with detectability and the columns of `thresholds.parent_weights`.
    min_exceedances : int
        See `detectability.fit_gate`.

    Returns
    -------
    pandas.DataFrame
        One row per rate of `GATE_FPRS`: fpr, threshold, n_negatives, n_exceedances, status.
    """
    weights = parent_weights(negatives)
    return pd.DataFrame([fit_gate(negatives["detectability"], fpr, weights, min_exceedances) for fpr in GATE_FPRS])


def trace_gates(populations, gates, threshold):
    """Cross D and M of several populations with the gate at one false-positive rate after the other, the model fixed.

    Parameters
    ----------
    populations : dict of name -> pandas.DataFrame
        See `compare_gates`.
    gates : pandas.DataFrame
        From `set_gates`; rates with too few negatives are left out.
    threshold : float
        On the logit.

    Returns
    -------
    pandas.DataFrame
        As `tabulate_gates`, axis "gate_fpr", both edges the gate's rate. Intervals are those of lenses and injections;
        what the negatives leave open of the gate's threshold is not in them.
    """
    rows = []
    for gate in gates[gates["status"] == "reported"].itertuples():
        where = {"axis": "gate_fpr", "lower_edge": gate.fpr, "upper_edge": gate.fpr}
        rows += [tabulate_gates(table, gate.threshold, threshold, None, name).assign(**where)
                 for name, table in populations.items()]  # fmt: skip
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


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
        With detectability and logit, and the columns of `by`; host_index (else galaxy_id) and brickname, where
        there are such columns, say which rows share a galaxy and a brick.
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
        with 95 % Jeffreys bounds at the effective number of rows (SPEC 8.2); recall = p_m_d p_d + p_m_nd (1 - p_d);
        missed_invisible and missed_visible, the shares of the misses that gate D does not and does see.

    Raises
    ------
    UserError
        For a column that the table lacks.
    """
    missing = [name for name in ("detectability", "logit", *(by or ())) if name not in table]
    if missing:
        raise UserError(f"two gates: {population or 'table'} has no {', '.join(missing)}; it has "
                        f"{', '.join(sorted(map(str, table)))}")  # fmt: skip
    model, gate = table["logit"].to_numpy() > threshold, table["detectability"].to_numpy() > gate_threshold
    named = [name for name in ("host_index", "galaxy_id") if name in table]
    host = table[named[0]].to_numpy() if named else np.arange(len(table))
    brick = table["brickname"].astype(str).to_numpy() if "brickname" in table else host
    rho = {"m": stats.pair_correlation(model, host, brick), "d": stats.pair_correlation(gate, host, brick)}

    def cross(use):
        return _cross(gate[use], model[use], host[use], brick[use], rho) | {"population": population}

    if by is None:
        where = {"axis": "all", "lower_edge": np.nan, "upper_edge": np.nan}
        return pd.DataFrame([cross(np.ones(len(table), dtype=bool)) | where])
    rows = []
    for column, edges in by.items():
        values = table[column].to_numpy()
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            where = {"axis": column, "lower_edge": low, "upper_edge": high}
            rows.append(cross((values >= low) & (values < high)) | where)
    return pd.DataFrame(rows)


def _cross(d, m, host, brick, rho):
    n, n_d, both, model = len(d), int(d.sum()), int((d & m).sum()), int((m & ~d).sum())
    out = {"n": n, "n_detectable": n_d, "n_both": both, "n_model_only": model, "n_gate_only": n_d - both,
           "n_neither": n - n_d - model}  # fmt: skip
    everything = np.ones(n, dtype=bool)
    parts = (("p_d", d, everything, "d"), ("p_m_d", m, d, "m"), ("p_m_nd", m, ~d, "m"), ("recall", m, everything, "m"),
             ("missed_invisible", ~d, ~m, "d"), ("missed_visible", d, ~m, "d"))  # fmt: skip
    for name, flag, among, kind in parts:
        share = float(flag[among].mean()) if among.any() else np.nan
        size = stats.effective_n(host[among], brick[among], *rho[kind])
        lower, upper = stats.jeffreys_interval(size * share if size else 0.0, size)
        out |= {name: share, f"{name}_lower": float(lower), f"{name}_upper": float(upper)}
    return out
