"""The calibration loop (SPEC 7.4): targets, the proposal's weights, its freeze, and rejection to a named S/N target.

Targets are train and validation lenses of Tier A that pass gate D; `freeze_proposal` refuses any other split, and any
detector score. It moves one thing, the brightness of the arcs, and says so in what it freezes.
"""

import numpy as np

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError, hash_object
from lensaudit.audit.recovery import KernelModel, Scaler

TARGET_COLUMNS = ("arc_radius", "psfsize_r", "depth_r", "mag_host")
TARGET_BANDWIDTH = 0.45
MIDPOINT_LIMITS = (1.0, 100.0)  # of the true arc S/N at which half are discovered
STEEPNESS = 4.0  # the odds of discovery rise with this power of the S/N
TOLERANCE = 0.05  # of the median; a median of a thousand lenses is no better known
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


def calibrate_discovery(injections, targets, limits=MIDPOINT_LIMITS, steps=20):
    """Find the lowest true arc S/N of half discovery at which the arcs are as bright as the targets' (SPEC 7.4).

    Lenses in a catalogue were found, so they are brighter than the prior's arcs; a chance of discovery that rises with
    arc_snr_true, applied as a weight, stands for that: the median arc_energy comes within 5 per cent of the targets'.
    Everything else is left as drawn, and closure and the map use the prior without it.

    Parameters
    ----------
    injections, targets : pandas.DataFrame
        Past gate D.
    limits : tuple of float
        Of the midpoint.
    steps : int
        Bisections of its logarithm.

    Returns
    -------
    float
        The midpoint; 0 (every arc discovered) when either side is empty.

    Raises
    ------
    UserError
        When a test lens is among the targets.

    Notes
    -----
    The chance saturates, unlike a power of the S/N, which would hand the sample to its few brightest arcs.
    """
    refuse_test_lenses(targets)
    if targets.empty or injections.empty:
        return 0.0
    wanted, (low, high) = (1.0 - TOLERANCE) * targets["arc_energy"].median(), np.log(limits)
    energy = injections["arc_energy"].to_numpy(dtype=float)
    for _ in range(steps):
        middle = 0.5 * (low + high)
        median = take_quantile(energy, weigh_to_targets(injections, targets, np.exp(middle))[0], 0.5)
        low, high = (middle, high) if median < wanted else (low, middle)
    return float(np.exp(0.5 * (low + high)))


def refuse_test_lenses(targets):
    """Raise UserError when a lens of another split than train and val is among the targets."""
    foreign = sorted(set(targets["split"]) - {"train", "val"})
    if foreign:
        row = targets.loc[targets["split"].isin(foreign), "galaxy_id"].iloc[0]
        raise UserError(f"proposal: {row} is a {foreign[0]} lens; targets must be train and validation lenses only")


def weigh_to_targets(injections, targets, midpoint=0.0, columns=TARGET_COLUMNS):
    """Weight injections so that their columns are distributed as the targets' (kernel mixture).

    Parameters
    ----------
    injections, targets : pandas.DataFrame
        With `columns`; both have passed gate D.
    midpoint : float
        From `calibrate_discovery`; 0 leaves the arcs as bright as drawn.

    Returns
    -------
    weights : ndarray of shape (N,)
        Sum 1.
    n_eff : float
        Kish size by host; 0 when one side is empty.
    """
    if targets.empty or injections.empty:
        return np.full(len(injections), 1.0 / max(len(injections), 1)), 0.0
    values = targets[list(columns)].to_numpy(dtype=float)
    low, centre, high = np.nanpercentile(values, [16, 50, 84], axis=0)
    scaler = Scaler(tuple(columns), centre, np.maximum(0.5 * (high - low), 1e-3))
    base = np.ones(len(injections))
    if midpoint:
        base = 1.0 / (1.0 + (midpoint / injections["arc_snr_true"].to_numpy(dtype=float)) ** STEEPNESS)
    kernel = KernelModel(injections, np.zeros(len(injections)), TARGET_BANDWIDTH, scaler, base / base.mean())
    weight = kernel.weigh(targets).astype(float)
    mixture = (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30)).mean(axis=0)
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
        One over the chance to be kept: weighted, the kept rows have the distribution of all rows inside the limits.

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


def freeze_proposal(targets, pilot, weights, config, prior, midpoint=0.0):
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
    midpoint : float
        From `calibrate_discovery`.

    Returns
    -------
    dict
        prior, cuts, quantiles of the targets, the pilot as weighted and as drawn, moved (what calibration changed, and
        whether it ran into its limit), hash.

    Raises
    ------
    UserError
        When a test lens, or a column of the detector, is among the inputs.
    """
    refuse_test_lenses(targets)
    scored = [name for name in ("logit", "score") if name in targets or name in pilot]
    if scored:
        raise UserError(f"proposal: column {scored[0]} is a detector score, which calibration must not see; drop it")
    quantiles, ones = (0.1, 0.5, 0.9), np.ones(len(targets))

    def describe(table, weight):
        return {c: [take_quantile(table[c].to_numpy(float), weight, q) for q in quantiles] for c in FROZEN_COLUMNS}

    content = {
        "prior_name": config.injection.prior, "prior": prior,
        "cuts": {"min_mu": config.injection.min_mu, "min_arc_snr_true": config.injection.min_arc_snr_true},
        "n_targets": len(targets), "target_ids": hash_object(sorted(targets["galaxy_id"].astype(str))),
        "targets": describe(targets, ones), "pilot": describe(pilot, weights),
        "pilot_as_drawn": describe(pilot, np.ones(len(pilot))),
        "moved": {"arc_snr_true_midpoint": round(float(midpoint), 6), "steepness": STEEPNESS,
                  "at_limit": bool(midpoint > 0.999 * MIDPOINT_LIMITS[1])},
    }  # fmt: skip
    return content | {"hash": hash_object(content)}
