"""Closure: do injections predict the recall of held-out lenses? (SPEC 8.7, on one sky.)

Order of events: `choose_models` sees injections only and is written down; then `join_lenses` brings the held-out lenses
and, on the simulated sky, the theta_E of the truth table handed in; then `run_closure` compares. Negative controls go
through the same functions with wrong injections in place of the right ones. Every control is tested on two rows: the
conditional row (8.7 as written) and the twins row, because conditioning on the measured arc_snr can hide a wrong
brightness. Beside them stands "unspoiled", correct injections of the same number: a control counts as caught when one
of its rows does not close although the same row of the correct injections does not fail, and that row is named.

The headline conditions on the six covariates of 8.7 with the prior's weights. Three further rows diagnose:
`calibrated` multiplies the weights with the catalogue's selection, inferred from train and validation lenses
(`unfolding`), `extended` adds the antisymmetric arc energy to the covariates, `oracle` takes the true arc S/N of the
truth table in place of the measured one.

More than one sky: `skies`. Lenses that no catalogue chose: `population`.
"""

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.held_out import score_lenses
from lensaudit.audit.recovery import (
    COVARIATES,
    EXTENDED,
    ORACLE,
    SUPPORT_BANDWIDTH,
    KernelModel,
    choose_model,
    fit_model,
    fit_scaler,
    has_covariates,
    take_weights,
)
from lensaudit.audit.unfolding import compare_draws, is_known, weigh_selection
from lensaudit.audit.verdict import DIAGNOSES, UNSPOILED, check_guard, compare_recall, judge_controls, make_empty_row


def find_supported(lenses, injections, config):
    """Return which lenses have a local effective size of injections of at least `closure.min_local_n_eff`.

    A control with fewer injections than the closure set is held to the same density, not to the same number.

    Returns
    -------
    supported : ndarray of bool, shape (n_lenses,)
    n_eff : ndarray of shape (n_lenses,)
        Host-clustered Kish size of a Gaussian kernel half a (robust) standard deviation wide in 8.7's covariates.
    """
    good = has_covariates(lenses)
    scaler = fit_scaler(injections)
    kernel = KernelModel(injections, np.zeros(len(injections)), SUPPORT_BANDWIDTH, scaler, take_weights(injections))
    n_eff = np.where(good, kernel.local_n_eff(lenses), 0.0)
    share = min(1.0, len(injections) / config.closure.n_injections)
    return n_eff >= config.closure.min_local_n_eff * share, n_eff


def close_conditional(lenses, injections, threshold, choice, config, name, selection=None):
    """Close on p_i = P(recovered | covariates of lens i) from the injections: 8.7's main row.

    Parameters
    ----------
    lenses : pandas.DataFrame
        All held-out lenses with covariates and logit; unsupported ones are counted and left out of both sides.
    injections : pandas.DataFrame
        Scored closure set (or a control's).
    threshold : float
        On the logit.
    choice : dict
        From `recovery.choose_model`.
    config : lensaudit.config.Config
    name : str
    selection : dict, optional
        From `unfolding.unfold_selection`: base weights are then the prior's times the chance of being catalogued,
        support is counted with them, and the selection's own error enters the interval.

    Returns
    -------
    row : dict
        As `compare_recall`, with n_unsupported, model and n_eff, the host-clustered effective number of all injections.
    table : pandas.DataFrame
        galaxy_id, supported, local_n_eff, p, recovered of every lens.
    """
    own = _weigh_rows(injections, selection)
    supported, n_eff = find_supported(lenses, own, config)
    use = lenses[supported].reset_index(drop=True)
    recovered = (use["logit"] > threshold).to_numpy()
    flag = (injections["logit"] > threshold).to_numpy()
    table = lenses[["galaxy_id"]].assign(supported=supported, local_n_eff=n_eff, p=np.nan,
                                         recovered=(lenses["logit"] > threshold).to_numpy())  # fmt: skip
    if len(use):
        generator = streams.make_stream(config.seed, "audit/closure/bootstrap", name)
        p, draws = _predict(use, own, flag, choice, config, generator, selection)
        table.loc[supported, "p"] = p
        row = compare_recall(use, recovered, p, draws, config, name)
    else:
        row = make_empty_row()
    row |= {"n_eff": stats.kish_n_eff(take_weights(own), own["host_index"].to_numpy())}
    return row | {"n_unsupported": int((~supported).sum()), "model": f"{choice['kind']} {choice['parameter']:g}"}, table


def _weigh_rows(injections, selection):
    if selection is None:
        return injections
    return injections.assign(weight=weigh_selection(injections, selection["log_weights"]))


def _predict(lenses, injections, flag, choice, config, generator, selection):
    """Return p_i and its draws: hosts resampled and, with a selection, its own draws on top."""
    scaler = fit_scaler(injections, choice["covariates"])
    model = fit_model(choice, injections, flag, scaler, take_weights(injections))
    p, draws = model.predict(lenses), model.draw(lenses, config.closure.n_bootstrap, generator)
    if selection is not None:
        moved = model.predict_under(lenses, *compare_draws(injections, selection)) - p
        draws = np.clip(draws + moved[generator.integers(0, len(moved), len(draws))], 0.0, 1.0)
    return p, draws


def close_twins(lenses, twins, threshold, config, name):
    """Close on twins: injections with each lens's own true parameters in other, matched galaxies.

    Parameters
    ----------
    lenses : pandas.DataFrame
        The supported lenses of the main row.
    twins : pandas.DataFrame
        Scored twins with lens_id (galaxy_id of the lens) and host_index.
    threshold, config, name
        As `close_conditional` takes them.

    Returns
    -------
    dict
        As `compare_recall`, with n_twins and n_unsupported (lenses without two twins). A fraction p of m twins makes
        p (1 - p) too small by 1 - 1/m on average; the binomial term alone is corrected for it.
    """
    own = twins[twins["lens_id"].isin(lenses["galaxy_id"])]
    counts = own.groupby("lens_id").size()
    use = lenses[lenses["galaxy_id"].isin(counts.index[counts >= 2])].reset_index(drop=True)
    own = own[own["lens_id"].isin(use["galaxy_id"])]
    if use.empty:
        return make_empty_row() | {"n_unsupported": len(lenses), "n_twins": 0}
    lens = pd.Series(np.arange(len(use)), use["galaxy_id"]).loc[own["lens_id"]].to_numpy()
    flag = (own["logit"].to_numpy() > threshold).astype(float)
    size = np.bincount(lens, minlength=len(use))
    p = np.bincount(lens, weights=flag, minlength=len(use)) / size
    generator = streams.make_stream(config.seed, "audit/closure/twins", name)
    draws = []
    for times in stats.draw_multiplicities(own["host_index"].to_numpy(), config.closure.n_bootstrap, generator):
        for row in times:
            bottom = np.bincount(lens, weights=row, minlength=len(use))
            top = np.bincount(lens, weights=row * flag, minlength=len(use))
            draws.append(np.where(bottom > 0, top / np.maximum(bottom, 1e-9), p))
    row = compare_recall(use, (use["logit"] > threshold).to_numpy(), p, np.asarray(draws), config, name,
                         p * (1 - p) * size / (size - 1))  # fmt: skip
    return row | {"n_unsupported": len(lenses) - len(use), "n_twins": len(own)}


def close_grid(lenses, grid, threshold, config, name, choice_bandwidth=SUPPORT_BANDWIDTH):
    """Close on the plain grid, reweighted to the lenses' covariates with a kernel.

    Parameters
    ----------
    lenses, threshold, config, name
        As `close_twins` takes them.
    grid : pandas.DataFrame
        Scored grid injections with mu, arc_snr_true, weight; those outside the closure set's cuts or untied to their
        host get no weight.
    choice_bandwidth : float
        Of the kernel, in robust standard deviations of the covariates.

    Returns
    -------
    dict
        As `compare_recall`, with n_eff (Kish, by host), max_weight, precision (mu^2 / var of the prediction) and
        guard_ok (SPEC 8.3: n_eff >= 30, no weight above 5 %, precision >= 4 per lens); the verdict reads "refused"
        where a guard fails.
    """
    section = config.injection
    keep = (grid["mu"] > section.min_mu) & (grid["arc_snr_true"] > section.min_arc_snr_true)
    if "untied" in grid:
        keep &= ~grid["untied"].astype(bool)
    base = grid.loc[keep, "weight"].to_numpy(dtype=float) if "weight" in grid else np.ones(int(keep.sum()))
    own, good = grid[keep].reset_index(drop=True), np.isfinite(base) & (base > 0)
    own, base = own[good].reset_index(drop=True), base[good]
    if own.empty or lenses.empty:
        return make_empty_row() | {"n_eff": 0.0, "max_weight": np.nan, "guard_ok": False, "n_unsupported": 0}
    flag = (own["logit"] > threshold).to_numpy()
    model = KernelModel(own, flag, choice_bandwidth, fit_scaler(own), base / base.mean())
    supported = model.local_n_eff(lenses) >= config.closure.min_local_n_eff
    use = lenses[supported].reset_index(drop=True)
    if use.empty:
        return make_empty_row() | {"n_eff": 0.0, "max_weight": np.nan, "guard_ok": False,
                                        "n_unsupported": len(lenses)}  # fmt: skip
    mixture = model.mix(use)
    n_eff = stats.kish_n_eff(mixture, own["host_index"].to_numpy())
    generator = streams.make_stream(config.seed, "audit/closure/grid", name)
    row = compare_recall(use, (use["logit"] > threshold).to_numpy(), model.predict(use),
                         model.draw(use, config.closure.n_bootstrap, generator), config, name)  # fmt: skip
    row |= {"n_eff": n_eff, "max_weight": float(mixture.max()), "n_unsupported": int((~supported).sum()),
            "precision": row["predicted"] ** 2 / max(row["predicted_sigma"] ** 2, 1e-12)}  # fmt: skip
    return row | check_guard(row)


def choose_models(injections, thresholds, config, selection=None):
    """Choose the model of P(recovered) at each operating point from the closure set alone.

    Parameters
    ----------
    injections : pandas.DataFrame
        Scored closure set.
    thresholds : dict of name -> float or None
    config : lensaudit.config.Config
    selection : dict, optional
        From `unfolding.unfold_selection`.

    Returns
    -------
    dict of name -> dict
        As `recovery.choose_model`, with the choices of the further rows (`DIAGNOSES`) under their names; None where
        the operating point has no threshold.
    """
    tables = {"main": (injections, COVARIATES), "extended": (injections, EXTENDED)}
    if is_known(selection):
        tables["calibrated"] = (_weigh_rows(injections, selection), COVARIATES)
    if "arc_snr_true" in injections:
        tables["oracle"] = (injections, ORACLE)
    flags = {name: injections["logit"] > threshold for name, threshold in thresholds.items() if threshold is not None}
    chosen = {kind: choose_model(table, flags, config, covariates=names) if flags else {}
              for kind, (table, names) in tables.items()}  # fmt: skip
    return {name: chosen["main"][name] | {kind: chosen[kind][name] for kind in tables if kind != "main"}
            if name in flags else None for name in thresholds}  # fmt: skip


def run_closure(lenses, injections, twins, grid, controls, thresholds, choices, config, detector, selections=None):
    """Run all rows of closure at each operating point.

    Parameters
    ----------
    lenses : pandas.DataFrame
        From `join_lenses`.
    injections, twins, grid : pandas.DataFrame
        Scored closure set, twins, grid.
    controls : dict of name -> (injections, twins)
        Scored with the control's mistake in them; "unspoiled" holds correct injections of the same number.
    thresholds : dict of name -> float or None
        On the logit; the first is the headline. None: too few negatives to set it, and the row stays empty.
    choices : dict of name -> dict
        From `choose_models`.
    config : lensaudit.config.Config
    detector : str
        Id of the frozen detector.
    selections : dict of name -> dict, optional
        From `unfolding.unfold_selections`: "main", and each control's own, for the rows `calibrated`.

    Returns
    -------
    closure : dict
        closure.json: the headline's keys at the top, every further operating point under its name.
    lens_table : pandas.DataFrame
        One row per lens and operating point.
    """
    if controls and UNSPOILED not in controls:
        raise UserError(f"controls: {UNSPOILED!r} is missing; add correct injections of the same number")
    out, tables, selections = {}, [], selections or {}
    for number, (name, threshold) in enumerate(thresholds.items()):
        if threshold is None:
            row, table = _leave_empty(lenses, controls)
        else:
            row, table = close_conditional(lenses, injections, threshold, choices[name], config, f"{name}/main")
            supported = lenses[table["supported"].to_numpy()].reset_index(drop=True)
            row |= _diagnose(supported, injections, threshold, choices[name], config, name,
                             selections.get("main"))  # fmt: skip
            row["twins"] = close_twins(supported, twins, threshold, config, f"{name}/twins")
            row["grid"] = close_grid(supported, grid, threshold, config, f"{name}/grid")
            row["controls"] = judge_controls({
                kind: _close_control(supported, pair, threshold, choices[name], config, f"{name}/{kind}",
                                     selections.get(kind))
                for kind, pair in controls.items()
            })  # fmt: skip
            row["model_scores"] = choices[name]["scores"]
        row |= {"fpr": _read_fpr(name), "threshold": threshold, "detector": str(detector)}
        tables.append(table.assign(threshold_name=name))
        out = row if number == 0 else out | {name: row}
    return out, pd.concat(tables, ignore_index=True)


def _diagnose(lenses, injections, threshold, choice, config, name, selection):
    out = {}
    for kind in DIAGNOSES:
        own = selection if kind == "calibrated" else None
        known = kind in choice and has_covariates(lenses, choice[kind]["covariates"]).all() if len(lenses) else False
        if known and (own is None or is_known(own)):
            out[kind], _ = close_conditional(lenses, injections, threshold, choice[kind], config, f"{name}/{kind}", own)
        else:
            out[kind] = _refuse_row(lenses, own)
    return out


def _refuse_row(lenses, selection):
    """Return an empty row with the reason of a selection that was not inferred."""
    reason = "" if selection is None else selection["reason"]
    return make_empty_row() | {"n_unsupported": len(lenses), "reason": reason}


def _leave_empty(lenses, controls):
    empty = make_empty_row() | {"n_unsupported": len(lenses)}
    row = empty | {kind: dict(empty) for kind in ("twins", *DIAGNOSES)} | {
                   "grid": empty | {"n_eff": 0.0, "max_weight": np.nan, "guard_ok": False},
                   "controls": judge_controls({kind: {"conditional": empty, "twins": empty} for kind in controls}),
                   "model": "", "model_scores": {}}  # fmt: skip
    table = lenses[["galaxy_id"]].assign(supported=False, local_n_eff=0.0, p=np.nan, recovered=False)
    return row, table


def _close_control(lenses, tables, threshold, choice, config, name, selection):
    conditional, _ = close_conditional(lenses, tables[0], threshold, choice, config, f"{name}/conditional")
    rows = {"conditional": conditional, "twins": close_twins(lenses, tables[1], threshold, config, f"{name}/twins")}
    if is_known(selection) and "calibrated" in choice:
        rows["calibrated"], _ = close_conditional(lenses, tables[0], threshold, choice["calibrated"], config,
                                                  f"{name}/calibrated", selection)  # fmt: skip
    elif selection is not None:
        rows["calibrated"] = _refuse_row(lenses, selection)
    return rows


def _read_fpr(name):
    return float(name.removeprefix("fpr_")) if name.startswith("fpr_") else None


def take_companion(table):
    """Return scored injections with the companion's logit in place of the audited detector's."""
    return table.assign(logit=table["logit_companion"])


def close_companion(lenses, scores, tables, thresholds, choices, config, detector, selections=None):
    """Run closure for the companion detector: the same lenses and injections, its own scores and thresholds.

    Parameters
    ----------
    lenses : pandas.DataFrame
        From `join_lenses`.
    scores : pandas.DataFrame
        The companion's scores of the test split.
    tables : (closure set, twins, grid)
        With ``logit_companion``.
    thresholds, choices, config, detector, selections
        As `run_closure` takes them.

    Returns
    -------
    dict
        As `run_closure`, without controls.
    """
    own = score_lenses(lenses, scores)
    swapped = [take_companion(table) for table in tables]
    main = {kind: value for kind, value in (selections or {}).items() if kind == "main"}
    return run_closure(own, *swapped, {}, thresholds, choices, config, detector, main)[0]
