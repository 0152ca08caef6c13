"""The selection of a catalogue, inferred from the brightness of its training lenses and from nothing else.

Lenses are in a catalogue because somebody saw them, so that at equal *measured* brightness they are brighter in truth
than a draw from the prior. `unfold_selection` infers how much more likely the catalogue holds a lens of higher true
S/N and larger theta_E over seeing, from blind measurements of train and validation lenses on one side and of
injections, whose truth is known, on the other. Realism weights its pilot with the result and freezes it in the
proposal; closure takes the frozen one as base weights of its row `calibrated`, and infers one anew for each negative
control (SPEC 7.4).

No detector score and no test lens enters; a table that holds either is refused.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from lensaudit import rng as streams
from lensaudit.artifacts import UserError, hash_object
from lensaudit.audit.recovery import BLOCK, fit_scaler, square_distances, take_weights, turn_to_kernel

TARGET_SPLITS = ("train", "val")
CONDITIONS = ("psfsize_r", "depth_r", "mag_host")  # lenses and injections are compared at equal values of these
STATISTICS = ("arc_energy", "arc_snr", "arc_radius")  # what tells the true brightness and radius, blindly
# Of both kernels, in robust standard deviations of the injections: the one in use, and two whose results enter the
# draws, since the choice moves the answer more than resampling does.
BANDWIDTH, OTHERS = 0.4, (0.3, 0.6)
SNR_EDGES = (8.0, 12.0, 18.0, 27.0, 40.0, 60.0)  # of arc_snr_true, between the bins
RADIUS_EDGES = (0.7, 1.0, 1.4)  # of theta_E / psfsize_r
ROUGHNESS = 0.5  # inverse variance of the second differences of the log weights: binds bins that data leave open
N_BOOTSTRAP = 40
MIN_LENSES = 50


def unfold_selection(injections, lenses, config):
    """Infer relative chances of being catalogued by true S/N and theta_E over seeing.

    Parameters
    ----------
    injections : pandas.DataFrame
        Measured closure set without ``logit``: arc_snr_true, theta_E, the columns `CONDITIONS` and `STATISTICS`, and
        ``weight`` where it was drawn unevenly.
    lenses : pandas.DataFrame
        Measured lenses of train and validation without ``logit``, with ``split``.
    config : lensaudit.config.Config
        For the seed.

    Returns
    -------
    dict
        snr_edges, radius_edges, log_weights (n_snr + n_radius values, the first of each zero), draws (bootstrap over
        lenses, at three bandwidths in turn), n_lenses, reason (empty), hash.

    Raises
    ------
    UserError
        For test lenses or detector scores among the inputs, missing columns, or too few lenses.

    Notes
    -----
    With w the relative chance, b the bins of truth, c the conditions and T the statistics of lens i, the likelihood is
    prod_i sum_b w_b p(T_i, b | c_i) / sum_b w_b p(b | c_i); the two densities are kernel sums over the injections. The
    chance is taken as a product of one factor in true S/N and one in theta_E / psfsize_r, steps held smooth by a
    penalty. That form is an assumption; the simulated sky's own discovery has it. The factor also takes up any error
    of the prior in brightness or radius.
    """
    found = _unfold(injections, lenses, config)
    if found["reason"]:
        raise UserError(found["reason"])
    return found


def unfold_selections(tables, lenses, config):
    """Unfold the selection with each of several sets of injections, such as a control's, which gets its own.

    Parameters
    ----------
    tables : dict of name -> pandas.DataFrame
        Injections; scores are dropped here.
    lenses, config
        As `unfold_selection` takes them; scores are dropped and test lenses left out here.

    Returns
    -------
    dict of name -> dict
        Of `unfold_selection`; n_lenses and the reason alone where a set leaves too few usable lenses (`is_known`).
        Empty when there are too few lenses to unfold from at all.
    """
    targets = take_targets(lenses)
    if len(targets) < 2 * MIN_LENSES:
        return {}
    blind = {kind: table.drop(columns=[c for c in table if c.startswith("logit")]) for kind, table in tables.items()}
    return {kind: _unfold(table, targets, config) for kind, table in blind.items()}


def take_targets(lenses):
    """Return the lenses of Tier A of training and validation, without a score."""
    own = lenses[lenses["split"].isin(TARGET_SPLITS) & (lenses["tier"] == "A")]
    return own.drop(columns=["logit", "score"], errors="ignore")


def is_known(selection):
    """Return whether a selection was inferred: neither None nor refused for want of lenses."""
    return selection is not None and not selection["reason"]


def _unfold(injections, lenses, config):
    """Return what `unfold_selection` does, or the reason why not where too few lenses lie among the injections."""
    _refuse(injections, lenses)
    lenses = lenses[np.isfinite(lenses[list(CONDITIONS)]).all(axis=1)]
    sums = _gather(injections, lenses, (BANDWIDTH, *OTHERS))
    known = sums[0][0].sum(axis=1) > 1e-12 * sums[0][1].sum(axis=1)
    sums = [(np.maximum(joint[known], 1e-30), marginal[known]) for joint, marginal in sums]
    n = int(known.sum())
    if n < MIN_LENSES:
        return {"reason": f"{n} lenses of train and validation lie among the injections; unfolding needs {MIN_LENSES}",
                "n_lenses": n}  # fmt: skip
    best = _maximise(*sums[0], np.ones(n))
    generator = streams.make_stream(config.seed, "audit/unfolding/bootstrap")
    times = generator.multinomial(n, np.full(n, 1.0 / n), size=N_BOOTSTRAP)
    draws = [_maximise(*sums[i % len(sums)], t, best).tolist() for i, t in enumerate(times)]
    out = {"snr_edges": list(SNR_EDGES), "radius_edges": list(RADIUS_EDGES), "n_lenses": n, "reason": "",
           "log_weights": best.tolist(), "draws": draws}  # fmt: skip
    return out | {"hash": hash_object(out)}


def weigh_selection(injections, log_weights):
    """Return the weight of each injection under an unfolded selection, times its own ``weight``; mean 1.

    Parameters
    ----------
    injections : pandas.DataFrame
    log_weights : sequence of float
        Of `unfold_selection`, or one of its draws.

    Returns
    -------
    ndarray of shape (N,)
    """
    bins, _ = label_bins(injections)
    weight = np.exp(_spread(np.asarray(log_weights))[bins]) * take_weights(injections)
    return weight / weight.mean()


def compare_draws(injections, selection):
    """Return the bin of each injection (N,) and the draws' weights of the bins over those of the best fit, (D, B)."""
    best, draws = np.asarray(selection["log_weights"]), np.asarray(selection["draws"])
    return label_bins(injections)[0], np.exp(np.stack([_spread(log - best) for log in draws]))


def tabulate_selection(selection):
    """Return a selection as a table: axis, lower, upper, chance (over that of the first bin), lower_68, upper_68.

    Without a row where none was inferred.
    """
    if not is_known(selection):
        return pd.DataFrame(columns=["axis", "lower", "upper", "chance", "lower_68", "upper_68"])
    edges = {"arc_snr_true": selection["snr_edges"], "theta_E / psfsize_r": selection["radius_edges"]}
    bins = [(axis, *pair) for axis, e in edges.items() for pair in zip([0.0, *e], [*e, np.inf], strict=True)]
    draws = np.quantile(selection["draws"], [0.16, 0.84], axis=0)
    return pd.DataFrame(bins, columns=["axis", "lower", "upper"]).assign(
        chance=np.exp(selection["log_weights"]), lower_68=np.exp(draws[0]), upper_68=np.exp(draws[1]))  # fmt: skip


def label_bins(injections):
    """Return the bin of truth of each injection, i_snr * n_radius + i_radius, and the number of bins."""
    snr = np.searchsorted(SNR_EDGES, injections["arc_snr_true"].to_numpy(dtype=float))
    radius = np.searchsorted(RADIUS_EDGES, (injections["theta_E"] / injections["psfsize_r"]).to_numpy(dtype=float))
    n_radius = len(RADIUS_EDGES) + 1
    return snr * n_radius + radius, (len(SNR_EDGES) + 1) * n_radius


def _spread(log_weights):
    """Return the log weight of every bin from those of the S/N bins and of the radius bins."""
    n = len(SNR_EDGES) + 1
    return (log_weights[:n, None] + log_weights[None, n:]).ravel()


def refuse_test_lenses(targets):
    """Raise UserError when a lens of another split than train and val is among the targets."""
    foreign = targets[~targets["split"].isin(TARGET_SPLITS)]
    if len(foreign):
        row = foreign.iloc[0]
        raise UserError(f"{row['galaxy_id']} is a {row['split']} lens; targets must be train and validation lenses")


def refuse_scores(**tables):
    """Raise UserError when a table holds a detector score, which calibration and selection must not see."""
    for name, table in tables.items():
        found = [column for column in table if column.startswith(("logit", "score"))]
        if found:
            raise UserError(f"{name}: column {found[0]} is a detector score, which calibration must not see; drop it")


def _refuse(injections, lenses):
    refuse_scores(injections=injections, lenses=lenses)
    refuse_test_lenses(lenses)
    for name in (*CONDITIONS, *STATISTICS):
        if name not in injections or name not in lenses:
            raise UserError(f"column {name} is missing; measure injections and lenses before unfolding")


def _gather(injections, lenses, widths):
    """Return, for each width, kernel sums per lens and bin: of conditions and statistics, and of conditions alone."""
    bins, n_bins = label_bins(injections)
    order = np.argsort(bins, kind="stable")
    present, starts = np.unique(bins[order], return_index=True)
    weight, sides = take_weights(injections)[order].astype(np.float32), []
    for names in (CONDITIONS, STATISTICS):
        scaler = fit_scaler(injections, names)
        sides.append([scaler.transform(table).astype(np.float32) for table in (lenses, injections.iloc[order])])
    out = [tuple(np.zeros((len(lenses), n_bins)) for _ in range(2)) for _ in widths]
    for first in range(0, len(lenses), BLOCK):
        rows = slice(first, first + BLOCK)
        (near, _), (alike, gap) = (square_distances(query[rows], x) for query, x in sides)
        for width, (joint, marginal) in zip(widths, out, strict=True):
            kernel = turn_to_kernel(near.copy(), width)  # a factor common to both sums of a lens is left out
            kernel *= weight
            marginal[rows, present] = np.add.reduceat(kernel, starts, axis=1)
            kernel *= turn_to_kernel(alike.copy(), width)
            kernel *= np.exp(-0.5 * gap / width**2)[:, None]
            joint[rows, present] = np.add.reduceat(kernel, starts, axis=1)
    return out


def _maximise(joint, marginal, times, start=None):
    """Return the log weights of greatest penalised likelihood; the first S/N bin and the first radius bin are 0."""
    n_snr, n_radius = len(SNR_EDGES) + 1, len(RADIUS_EDGES) + 1
    free = np.r_[1:n_snr, n_snr + 1 : n_snr + n_radius]
    curve = np.zeros((n_snr + n_radius - 4, n_snr + n_radius))
    for row, first in enumerate([*range(n_snr - 2), *range(n_snr, n_snr + n_radius - 2)]):
        curve[row, first : first + 3] = (1.0, -2.0, 1.0)

    def cost(values):
        log = np.zeros(n_snr + n_radius)
        log[free] = values
        w = np.exp(_spread(log))
        top, bottom = joint @ w, marginal @ w
        bend = curve @ log
        slope = times @ ((joint * w) / top[:, None] - (marginal * w) / bottom[:, None])
        table = slope.reshape(n_snr, n_radius)
        gradient = np.append(table.sum(axis=1), table.sum(axis=0)) - ROUGHNESS * curve.T @ bend
        value = times @ (np.log(top) - np.log(bottom)) - 0.5 * ROUGHNESS * bend @ bend
        return -value, -gradient[free]

    first = np.zeros(len(free)) if start is None else start[free]
    log = np.zeros(n_snr + n_radius)
    log[free] = minimize(cost, first, jac=True, method="L-BFGS-B", bounds=[(-12.0, 12.0)] * len(free)).x
    return log
