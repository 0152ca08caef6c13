"""The survey's completeness under a catalogue's weights, with and without what its images say (SPEC 7.4).

Three averages of the same injections: under the prior; with the prior's arcs put at the seeing, depth and host
magnitude of the catalogue's lenses, for which no image of a candidate is looked at; and, beside that, with the
selection that was inferred from the brightness and size of their arcs (`unfolding`). A lens enters as a place in these
columns and never as a label: whether the detector finds it is not known here.
"""

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import AXES, assign_cells
from lensaudit.audit.recovery import KernelModel, fit_scaler
from lensaudit.audit.unfolding import CONDITIONS, compare_draws, is_known, take_targets, weigh_selection
from lensaudit.audit.verdict import explain_weights

WEIGHTINGS = ("prior", "conditions", "conditions and images")
BANDWIDTH = 0.25  # of the lenses' scatter in each condition; twice as wide moves the average by a tenth of itself


def average_calibrated(table, prior_weights, cells, grid, thresholds, lenses, selection, config):
    """Average the completeness of the grid under the prior, and under the catalogue's conditions and selection.

    Parameters
    ----------
    table : pandas.DataFrame
        Scored grid injections: the axes, `CONDITIONS`, arc_snr_true, footprint_weight, host_index, brickname, logit.
    prior_weights : ndarray of shape (N,)
        That make them draws of the prior (`injection.density.weigh_prior`).
    cells : pandas.DataFrame
        From `completeness.count_cells`; sufficient ones enter.
    grid : dict of axis -> centres
    thresholds : dict of name -> float
        On the logit.
    lenses : pandas.DataFrame
        Measured lenses; those of Tier A of training and validation set the conditions.
    selection : dict or None
        Frozen, from `unfolding.unfold_selections`.
    config : lensaudit.config.Config

    Returns
    -------
    pandas.DataFrame
        threshold_name, weighting (`WEIGHTINGS`), completeness, lower, upper (95 %), n_eff (Kish, by host), max_weight
        (share of the sum), n_targets, reason. Where a guard of SPEC 8.3 fails, or there is no selection, the reason
        says so and the numbers are NaN.

    Raises
    ------
    UserError
        When footprint_weight is missing, or one of `CONDITIONS`.

    Notes
    -----
    Injections and lenses count with the survey's weight of their conditions. A weighting to conditions is a kernel
    mixture in `CONDITIONS` with the weights before it as base, the selection among them in the last one. Bounds
    resample bricks, and in the last one the selection's own draws are added.
    """
    for name in (*CONDITIONS, "footprint_weight"):
        if name not in table or name not in lenses:
            raise UserError(f"calibrated completeness: column {name} is missing from the injections or the lenses")
    number = assign_cells(table, grid)
    first = cells["threshold_name"] == next(iter(thresholds))
    support = cells[first].sort_values(list(AXES), kind="stable")["sufficient"].to_numpy(dtype=bool)
    base = np.asarray(prior_weights) * table["footprint_weight"].to_numpy(dtype=float)
    use = (number >= 0) & support[number] & (base > 0)
    rows, rest = table[use].assign(weight=base[use]).reset_index(drop=True), []
    targets = take_targets(lenses).dropna(subset=list(CONDITIONS))
    for weighting in WEIGHTINGS:
        weight, model, reason = _weigh_rows(rows, targets, weighting, selection)
        own = _check_weights(weight, rows, reason)
        for name, threshold in thresholds.items():
            flag = (rows["logit"] > threshold).to_numpy(dtype=float)
            numbers = dict.fromkeys(("completeness", "lower", "upper"), np.nan)
            if not own["reason"]:
                moved = np.zeros(1)
                if weighting == WEIGHTINGS[2]:
                    model.y = flag.astype(np.float32)
                    p = model.predict_under(targets, *compare_draws(rows, selection))
                    moved = p @ (targets["footprint_weight"] / targets["footprint_weight"].sum()).to_numpy()
                numbers = _measure(flag, weight, rows["brickname"], moved, config, f"{weighting}/{name}")
            rest.append({"threshold_name": name, "weighting": weighting} | numbers | own | {"n_targets": len(targets)})
    return pd.DataFrame(rest)


def _weigh_rows(rows, targets, weighting, selection):
    """Return weights of sum 1, the kernel model behind them, and why there are none."""
    empty, base = np.zeros(len(rows)), rows["weight"].to_numpy()
    if not len(rows) or weighting == WEIGHTINGS[0]:
        return (base / base.sum() if len(rows) else empty), None, ""
    if not targets["footprint_weight"].sum() > 0:
        return empty, None, "no lens of training and validation sets the conditions"
    if weighting == WEIGHTINGS[2]:
        if not is_known(selection):
            return empty, None, selection["reason"] if selection else "no selection was inferred"
        base = weigh_selection(rows, selection["log_weights"])
    scaler = fit_scaler(targets[list(CONDITIONS)], CONDITIONS)
    model = KernelModel(rows, empty, BANDWIDTH, scaler, base / base.mean())
    return model.mix(targets, targets["footprint_weight"]), model, ""


def _check_weights(weight, rows, reason):
    n_eff, largest = stats.kish_n_eff(weight, rows["host_index"]), float(weight.max(initial=0.0))
    return {"n_eff": n_eff, "max_weight": largest, "reason": reason or explain_weights(n_eff, largest)}


def _measure(flag, weight, bricks, moved, config, name):
    """Return the average with bounds; `moved` are averages under the selection's draws."""
    value, generator = float(weight @ flag), streams.make_stream(config.seed, "audit/calibrated", name)
    drawn = stats.cluster_bootstrap(flag, bricks, config.evaluation.n_bootstrap, generator, weight)
    drawn = drawn + (moved - moved.mean())[generator.integers(0, len(moved), len(drawn))]
    lower, upper = np.clip(stats.summarise_draws(drawn), 0.0, 1.0)
    return {"completeness": value, "lower": float(lower), "upper": float(upper)}
