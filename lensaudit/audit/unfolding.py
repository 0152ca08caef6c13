"""The selection of a catalogue, inferred from the brightness of its training lenses and from nothing else.

Lenses are in a catalogue because somebody saw them, so that at equal *measured* brightness they are brighter in truth
than a draw from the prior. `unfold_selection` infers how much more likely the catalogue holds a lens of higher true
S/N and larger theta_E over seeing, from blind measurements of train and validation lenses on one side and of
injections, whose truth is known, on the other. Closure takes the result as base weights in its row `calibrated` (SPEC
7.4: the proposal calibrated to train and validation targets and frozen before a test lens is joined).

No detector score and no test lens enters; a table that holds either is refused.
"""

import numpy as np
from scipy.optimize import minimize

from lensaudit import rng as streams
from lensaudit.artifacts import UserError, hash_object
from lensaudit.stats import weighted_quantile

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
BLOCK = 256  # lenses worked on at once


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
        lenses, at three bandwidths in turn), n_lenses, hash.

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
    _refuse(injections, lenses)
    lenses = lenses[np.isfinite(lenses[list(CONDITIONS)]).all(axis=1)]
    bins, n_bins = label_bins(injections)
    sums = [_gather(injections, lenses, bins, n_bins, width) for width in (BANDWIDTH, *OTHERS)]
    known = sums[0][0].sum(axis=1) > 1e-12 * sums[0][1].sum(axis=1)
    sums = [(np.maximum(joint[known], 1e-30), marginal[known]) for joint, marginal in sums]
    joint, marginal = sums[0]
    if len(joint) < MIN_LENSES:
        raise UserError(f"{len(joint)} lenses of train and validation lie among the injections; unfolding needs "
                        f"{MIN_LENSES}")  # fmt: skip
    best = _maximise(joint, marginal, np.ones(len(joint)))
    generator = streams.make_stream(config.seed, "audit/unfolding/bootstrap")
    times = generator.multinomial(len(joint), np.full(len(joint), 1.0 / len(joint)), size=N_BOOTSTRAP)
    draws = [_maximise(*sums[i % len(sums)], t, best).tolist() for i, t in enumerate(times)]
    out = {"snr_edges": list(SNR_EDGES), "radius_edges": list(RADIUS_EDGES), "n_lenses": len(joint),
           "log_weights": best.tolist(), "draws": draws}  # fmt: skip
    return out | {"hash": hash_object(out)}


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
        Empty when there are too few lenses to unfold from.
    """
    targets = lenses[lenses["split"].isin(["train", "val"]) & (lenses["tier"] == "A")]
    targets = targets.drop(columns=["logit", "score"], errors="ignore")
    if len(targets) < 2 * MIN_LENSES:
        return {}
    blind = {kind: table.drop(columns=[c for c in table if c.startswith("logit")]) for kind, table in tables.items()}
    return {kind: unfold_selection(table, targets, config) for kind, table in blind.items()}


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
    weight = np.exp(_spread(np.asarray(log_weights))[bins]) * _base(injections)
    return weight / weight.mean()


def label_bins(injections):
    """Return the bin of truth of each injection, i_snr * n_radius + i_radius, and the number of bins."""
    snr = np.searchsorted(SNR_EDGES, injections["arc_snr_true"].to_numpy(dtype=float))
    radius = np.searchsorted(RADIUS_EDGES, (injections["theta_E"] / injections["psfsize_r"]).to_numpy(dtype=float))
    n_radius = len(RADIUS_EDGES) + 1
    return snr * n_radius + radius, (len(SNR_EDGES) + 1) * n_radius


def _base(injections):
    return injections["weight"].to_numpy(dtype=float) if "weight" in injections else np.ones(len(injections))


def _spread(log_weights):
    """Return the log weight of every bin from those of the S/N bins and of the radius bins."""
    n = len(SNR_EDGES) + 1
    return (log_weights[:n, None] + log_weights[None, n:]).ravel()


def _refuse(injections, lenses):
    for name, table in (("injections", injections), ("lenses", lenses)):
        if any(c.startswith(("logit", "score")) for c in table):
            raise UserError(f"{name} hold a detector score; the selection is inferred without one: drop the column")
    if (lenses["split"] == "test").any():
        row = lenses.loc[lenses["split"] == "test", "galaxy_id"].iloc[0]
        raise UserError(f"lens {row} is a test lens; the selection is inferred from train and validation alone")
    for name in (*CONDITIONS, *STATISTICS):
        if name not in injections or name not in lenses:
            raise UserError(f"column {name} is missing; measure injections and lenses before unfolding")


def _standardise(table, names, width, centre=None, scale=None):
    values = table[list(names)].to_numpy(dtype=float, copy=True)
    for name in {"arc_energy", "arc_snr"} & set(names):
        column = names.index(name)
        values[:, column] = np.arcsinh(values[:, column] / 2.0)  # linear in the noise, logarithmic above
    if centre is None:
        weight, rows = _base(table), []
        for column in values.T:
            use = np.isfinite(column)
            rows.append(weighted_quantile(column[use], np.array([0.16, 0.5, 0.84]), weight[use]))
        low, centre, high = np.transpose(rows)
        scale = np.maximum(0.5 * (high - low), 1e-6)
    z = (values - centre) / scale
    # An arc too faint to have a radius is a state of its own.
    missing = ~np.isfinite(z)
    z = np.column_stack([np.where(missing, 0.0, np.clip(z, -6.0, 6.0)), 3.0 * missing.any(axis=1)])
    return (z / width).astype(np.float32), centre, scale


def _gather(injections, lenses, bins, n_bins, width):
    """Return kernel sums per lens and bin: of conditions and statistics together, and of the conditions alone."""
    weight = _base(injections).astype(np.float32)
    sides = []
    for names in (CONDITIONS, STATISTICS):
        x, centre, scale = _standardise(injections, names, width)
        sides.append((x, _standardise(lenses, names, width, centre, scale)[0]))
    order = np.argsort(bins, kind="stable")
    present, starts = np.unique(bins[order], return_index=True)
    joint, marginal = (np.zeros((len(lenses), n_bins)) for _ in range(2))
    for first in range(0, len(lenses), BLOCK):
        rows = slice(first, first + BLOCK)
        kernel = _kernel(sides[0][1][rows], sides[0][0][order]) * weight[order]
        marginal[rows, present] = np.add.reduceat(kernel, starts, axis=1)
        kernel *= _kernel(sides[1][1][rows], sides[1][0][order], shift=False)
        joint[rows, present] = np.add.reduceat(kernel, starts, axis=1)
    return joint, marginal


def _kernel(query, x, shift=True):
    square = (query**2).sum(1)[:, None] + (x**2).sum(1)[None, :] - 2.0 * query @ x.T
    if shift:  # a common factor of both sums of a lens
        square -= square.min(axis=1, keepdims=True)
    return np.exp(-0.5 * np.maximum(square, 0.0))


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
