"""The calibration loop (SPEC 7.4): targets, the proposal's weights, its freeze, and rejection to a named S/N target.

Targets are train and validation lenses of Tier A that pass gate D; `freeze_proposal` refuses any other split, and any
detector score. It moves one thing, how likely arcs of a true S/N and radius are to be catalogued (`unfolding`), and
says so in what it freezes.
"""

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError, hash_object
from lensaudit.audit.recovery import KernelModel, fit_scaler, take_weights
from lensaudit.audit.unfolding import is_known, refuse_scores, refuse_test_lenses, weigh_selection

TARGET_COLUMNS = ("arc_radius", "psfsize_r", "depth_r", "mag_host")
TARGET_BANDWIDTH = 0.45
# What the two-sample test is matched in besides (SPEC 7.3, host- and colour-matched): colours of the arc, of the host.
PROBE_COLUMNS = (*TARGET_COLUMNS, "arc_g_r", "arc_r_z", "host_g_r", "host_r_z")
FROZEN_COLUMNS = ("arc_snr", "arc_g_r", "arc_r_z", "arc_radius", "arc_width", "arc_energy")


def select_targets(measurements, gate_threshold, splits=("train", "val"), tier="A"):
    """Return the lenses that injections are compared with: one tier, given splits, passing gate D.

    Parameters
    ----------
    measurements : pandas.DataFrame
        Blind measurements of positives, with split and tier.
    gate_threshold : float or None
        On detectability; None (too few negatives to set it) lets all pass.
    """
    own = measurements[measurements["split"].isin(splits) & (measurements["tier"] == tier)]
    return pass_gate(own, gate_threshold)


def pass_gate(table, gate_threshold):
    """Return the rows whose detectability exceeds the gate, and whose arc radius could be measured."""
    keep = table["arc_radius"].notna() & table["mag_host"].notna()
    if gate_threshold is not None:
        keep &= table["detectability"] > gate_threshold
    return table[keep].reset_index(drop=True)


def weigh_to_targets(injections, targets, selection=None, columns=TARGET_COLUMNS):
    """Weight injections so that their columns are distributed as the targets' (kernel mixture).

    Parameters
    ----------
    injections, targets : pandas.DataFrame
        With `columns`; both have passed gate D. An injection's own ``weight`` counts.
    selection : dict, optional
        From `unfolding.unfold_selections`; without it, or where it was refused, arcs stay as bright as drawn.
    columns : sequence of str
        Those without a finite value among the targets are left out. A missing colour is a state of its own in arc_g_r
        (`recovery.MISSING`) and the median elsewhere.

    Returns
    -------
    weights : ndarray of shape (N,)
        Sum 1.
    n_eff : float
        Kish size by host; 0 when one side is empty.
    """
    if targets.empty or injections.empty:
        return np.full(len(injections), 1.0 / max(len(injections), 1)), 0.0
    base = take_weights(injections)
    if is_known(selection):
        base = weigh_selection(injections, selection["log_weights"])
    columns = [name for name in columns if targets[name].notna().any()]
    scaler = fit_scaler(targets[columns], columns)
    kernel = KernelModel(injections, np.zeros(len(injections)), TARGET_BANDWIDTH, scaler, base / base.mean())
    mixture = kernel.mix(targets)
    return mixture, stats.kish_n_eff(mixture, injections["host_index"].to_numpy())


def take_quantile(values, weights, q):
    """Return a weighted quantile of the finite values with a positive weight (float), NaN without any."""
    good = np.isfinite(values) & (weights > 0)
    return float(stats.weighted_quantile(values[good], q, weights[good])) if good.any() else np.nan


def reject_to_log_uniform(table, seed, low=2.0, high=50.0, column="arc_snr_true", n_bins=16, per_bin=None):
    """Keep rows so that a signal-to-noise ratio is spread evenly in its logarithm, with the weights that undo it.

    Parameters
    ----------
    table : pandas.DataFrame
        Injections, with injection_id and `column`.
    seed : int
    low, high : float
        Limits of the target; rows outside are not kept, and no weight brings them back.
    column : str
    n_bins : int
        Equal bins of log S/N in which the density is counted.
    per_bin : int, optional
        Expected number kept per bin; bins with fewer rows keep all of theirs. By default that of the rarest bin that
        has any, so that no occupied bin falls short.

    Returns
    -------
    kept : pandas.DataFrame
    weights : ndarray of shape (len(kept),)
        One over the chance to be kept: weighted, the kept rows have the distribution of all rows inside the limits. As
        their column ``weight`` they count wherever injections are weighed (`recovery.take_weights`).

    Raises
    ------
    UserError
        When `column` or injection_id is missing, the limits are not 0 < low < high, or no row lies inside them.

    Notes
    -----
    Whether a row is kept depends on its injection_id and its bin's count, not on the order of the rows.
    """
    absent = [name for name in (column, "injection_id") if name not in table]
    if absent:
        raise UserError(f"rejection to log-uniform S/N: column {absent[0]} is missing from the injection table")
    if not 0 < low < high:
        raise UserError(f"rejection to log-uniform S/N: limits {low:g}, {high:g} must satisfy 0 < low < high")
    snr = table[column].to_numpy(dtype=float)
    inside = np.flatnonzero((snr >= low) & (snr < high))
    if not len(inside):
        raise UserError(f"rejection to log-uniform S/N: no row has {column} between {low:g} and {high:g}")
    number = np.digitize(np.log(snr[inside]), np.linspace(np.log(low), np.log(high), n_bins + 1)[1:-1])
    count = np.bincount(number, minlength=n_bins)
    wanted = per_bin or count[count > 0].min()
    chance = np.minimum(wanted / count[number], 1.0)
    u = streams.draw_uniforms(seed, "audit/realism/log_uniform", table["injection_id"].to_numpy()[inside], 1)[:, 0]
    kept = u < chance
    return table.iloc[inside[kept]].reset_index(drop=True), 1.0 / chance[kept]


def freeze_proposal(targets, pilot, weights, config, prior, selection=None):
    """Describe and hash the proposal, from train and validation lenses only, before any test lens enters.

    Parameters
    ----------
    targets : pandas.DataFrame
        From `select_targets`; every row's split must be train or val.
    pilot : pandas.DataFrame
        Injections that pass gate D.
    weights : ndarray
        From `weigh_to_targets`.
    config : lensaudit.config.Config
    prior : dict
        The prior as used (its manifest's content).
    selection : dict, optional
        From `unfolding.unfold_selections`, of the whole pilot.

    Returns
    -------
    dict
        prior, cuts, quantiles of the targets, the pilot as weighted and as the prior has it, moved (what calibration
        changed: the selection, or why none was inferred), hash.

    Raises
    ------
    UserError
        When a test lens, or a column of the detector, is among the inputs.
    """
    refuse_test_lenses(targets)
    refuse_scores(targets=targets, pilot=pilot)
    quantiles, ones = (0.1, 0.5, 0.9), np.ones(len(targets))

    def describe(table, weight):
        return {c: [take_quantile(table[c].to_numpy(float), weight, q) for q in quantiles] for c in FROZEN_COLUMNS}

    content = {
        "prior_name": config.injection.prior, "prior": prior,
        "cuts": {"min_mu": config.injection.min_mu, "min_arc_snr_true": config.injection.min_arc_snr_true},
        "n_targets": len(targets), "target_ids": hash_object(sorted(targets["galaxy_id"].astype(str))),
        "targets": describe(targets, ones), "pilot": describe(pilot, weights),
        "pilot_as_drawn": describe(pilot, take_weights(pilot)),
        "moved": selection or {"reason": "too few lenses of train and validation to infer a selection from"},
    }  # fmt: skip
    return content | {"hash": hash_object(content)}


def describe_moves(proposal):
    """Return what the loop moved and what it left: medians of each frozen column, from `freeze_proposal`'s content.

    Returns
    -------
    pandas.DataFrame
        By column: targets, as_drawn, weighted (medians), moved (weighted minus as drawn), left (weighted minus
        targets).
    """
    keys = {"targets": "targets", "as_drawn": "pilot_as_drawn", "weighted": "pilot"}
    table = pd.DataFrame({name: {column: values[1] for column, values in proposal[key].items()}
                          for name, key in keys.items()}, dtype=float)  # fmt: skip
    return table.assign(moved=table["weighted"] - table["as_drawn"], left=table["weighted"] - table["targets"])
