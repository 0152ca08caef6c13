"""P(recovered | covariates) from injections: a kernel-weighted fraction and a spline logistic regression.

Both know their base weights and their hosts, so that a host-clustered bootstrap of any prediction is a matrix product,
and both give what they would say under other weights of groups of rows (`predict_under`), such as with a fold left out.
Which of them closure uses is decided by the cross-validated log-score inside the injections, before a lens is seen.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.preprocessing import SplineTransformer

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError

# The six of SPEC 8.7. The extended set adds the antisymmetric arc energy, which orders arcs by their true S/N better
# than the summed flux does; its row stands beside the headline and never in its place.
COVARIATES = ("theta_E", "psfsize_r", "depth_r", "arc_snr", "arc_g_r", "mag_host")
EXTENDED = (*COVARIATES, "arc_energy")
# With the true arc S/N in place of the measured one: a diagnosis, possible on the simulated sky only.
ORACLE = tuple("arc_snr_true" if name == "arc_snr" else name for name in COVARIATES)
# What cannot be measured on a faint arc is a state of its own, so far from the measured ones (in scales).
MISSING = {"arc_g_r": 2.0, "arc_radius": 3.0}
SUPPORT_BANDWIDTH = 0.5  # of the robust scatter of each covariate; defines the local effective size
CANDIDATES = (("kernel", 0.3), ("kernel", 0.45), ("kernel", 0.7), ("spline", 0.3), ("spline", 3.0), ("spline", 30.0))
N_FOLDS = 5
MAX_SCORED = 4000  # held-out rows the log-score is taken on
BOUNDS = (1e-3, 1.0 - 1e-3)  # of a probability in the log-score
BLOCK = 64  # rows of a kernel worked on at once; a few MB, which stay in the cache
TOLERANCE = 1e-6  # of a fit, in units of the log-likelihood: a thousandth of a coefficient's own error
MAX_STEPS = 50


@dataclass(frozen=True)
class Scaler:
    """Centre and scale of the covariates, from the injections alone."""

    names: tuple
    centre: np.ndarray
    scale: np.ndarray

    def transform(self, table):
        """Return standardised covariates (N, D + 1); the last column flags what was not measurable (`MISSING`)."""
        values = _take_covariates(table, self.names)
        missing = ~np.isfinite(values)
        scaled = np.where(missing, 0.0, (values - self.centre) / self.scale)
        distance = np.array([MISSING.get(name, 0.0) for name in self.names])
        return np.column_stack([np.clip(scaled, -6.0, 6.0), (missing * distance).max(axis=1, initial=0.0)])


def _take_covariates(table, names):
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(f"covariate(s) {', '.join(missing)} missing from the table; measure them before closure")
    values = np.stack([table[name].to_numpy(dtype=float) for name in names], axis=1)
    for name in {"arc_snr", "arc_snr_true", "arc_energy"} & set(names):
        column = names.index(name)
        values[:, column] = np.arcsinh(values[:, column] / 2.0)  # linear in the noise, logarithmic above
    if "arc_g_r" in names:
        column = names.index("arc_g_r")
        values[:, column] = np.clip(values[:, column], -1.5, 3.0)
    return values


def fit_scaler(table, names=COVARIATES):
    """Fit centre (median) and scale (half the 16-84 % range) of the covariates of injections."""
    values, weights, rows = _take_covariates(table, names), take_weights(table), []
    for column in values.T:
        use = np.isfinite(column)
        rows.append(stats.weighted_quantile(column[use], np.array([0.16, 0.5, 0.84]), weights[use]))
    low, centre, high = np.transpose(rows)
    return Scaler(tuple(names), centre, np.maximum(0.5 * (high - low), 1e-6))


def take_weights(table):
    """Return the base weights of injections: ``weight`` where a set was drawn unevenly, else 1."""
    return table["weight"].to_numpy(dtype=float) if "weight" in table else np.ones(len(table))


def has_covariates(table, names=COVARIATES):
    """Return which rows have all covariates; the arc's colour may be missing, which is a state of its own."""
    needed = [name for name in names if name not in MISSING]
    return np.isfinite(_take_covariates(table, needed)).all(axis=1)


def square_distances(query, x):
    """Return the squared distances of rows, (n_query, N), less that of the nearest, and the latter, (n_query,)."""
    square = query @ (-2.0 * x.T)
    square += (query**2).sum(axis=1)[:, None]
    square += (x**2).sum(axis=1)
    nearest = np.maximum(square.min(axis=1), 0.0)
    square -= nearest[:, None]
    return np.maximum(square, 0.0, out=square), nearest


def turn_to_kernel(square, width=1.0):
    """Turn squared distances into a Gaussian kernel, in place."""
    square *= -0.5 / width**2
    return np.exp(square, out=square)


class KernelModel:
    """Gaussian-kernel-weighted recovered fraction.

    Parameters
    ----------
    table : pandas.DataFrame
        Injections with the covariates and host_index.
    flag : array_like of bool, shape (N,)
    bandwidth : float
        In units of the covariates' scale.
    scaler : Scaler
    weights : array_like of shape (N,), optional
        Base weights.
    """

    def __init__(self, table, flag, bandwidth, scaler, weights=None):
        self.scaler, self.bandwidth = scaler, float(bandwidth)
        self.x = (scaler.transform(table) / bandwidth).astype(np.float32)
        self.y = np.asarray(flag, dtype=np.float32)
        self.weights = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=float)
        self.host = stats.encode_groups(table["host_index"])

    def weigh(self, table):
        """Return kernel x base weights (n_query, N), each row scaled to a maximum of about 1."""
        return np.concatenate([np.empty((0, len(self.x)), np.float32), *(part for part, _ in self._weigh(table))])

    def _weigh(self, table):
        """Yield `weigh` and the distance of the nearest injection, of a few rows at a time."""
        query = (self.scaler.transform(table) / self.bandwidth).astype(np.float32)
        base = self.weights.astype(np.float32)
        for first in range(0, len(query), BLOCK):
            square, nearest = square_distances(query[first : first + BLOCK], self.x)
            weight = turn_to_kernel(square)
            weight *= base
            yield weight, np.sqrt(nearest)

    def mix(self, table, shares=None):
        """Return weights (N,), of sum 1, that give the rows the distribution of another table, kernel by kernel.

        `shares`, of shape (n_query,), says how much each of its rows counts; alike by default.
        """
        shares = np.ones(len(table)) if shares is None else np.asarray(shares, dtype=float)
        out, first = np.zeros(len(self.x)), 0
        for weight, _ in self._weigh(table):
            part = shares[first : first + len(weight)] / np.maximum(weight.sum(axis=1, dtype=float), 1e-30)
            out, first = out + part @ weight, first + len(weight)
        return out / shares.sum()

    def predict(self, table):
        """Return P(recovered) for each row, shape (n_query,)."""
        return self.predict_under(table, np.zeros(len(self.y), dtype=int), np.ones((1, 1)))[0]

    def predict_under(self, table, group, ratios):
        """Return `predict` under other weights: those of the rows of group g times ratios[k, g], shape (K, n_query)."""
        total, found, _ = self._sum_groups(table, np.asarray(group), np.shape(ratios)[1])
        return (ratios @ found.T) / np.maximum(ratios @ total.T, 1e-30)

    def _sum_groups(self, table, group, n):
        """Return weight and recovered weight by group, both (n_query, n), and the distance of the nearest."""
        member = csr_matrix((np.ones(len(group), np.float32), (np.arange(len(group)), group)), (len(group), n))
        found, parts = member.multiply(self.y[:, None]).tocsr(), [(np.zeros((0, n)), np.zeros((0, n)), np.zeros(0))]
        parts += [(weight @ member, weight @ found, nearest) for weight, nearest in self._weigh(table)]
        return tuple(np.concatenate([np.asarray(part[k], dtype=float) for part in parts]) for k in range(3))

    def draw(self, table, n, generator):
        """Return n host-bootstrap draws of `predict`, shape (n, n_query)."""
        total, found, _ = self._sum_groups(table, self.host, self.host.max(initial=-1) + 1)
        centre = found.sum(axis=1) / np.maximum(total.sum(axis=1), 1e-30)
        times = np.concatenate(list(stats.draw_multiplicities(total.shape[1], n, generator)))
        top, bottom = times @ found.T, times @ total.T
        return np.where(bottom > 0, top / np.maximum(bottom, 1e-30), centre)

    def local_n_eff(self, table):
        """Return the host-clustered Kish effective size of the kernel weights of each row, shape (n_query,)."""
        total, _, nearest = self._sum_groups(table, self.host, self.host.max(initial=-1) + 1)
        size = total.sum(axis=1) ** 2 / np.maximum((total**2).sum(axis=1), 1e-30)
        return np.where(nearest < 4.0, size, 0.0)  # no injection within four bandwidths: extrapolation, not support


class SplineModel:
    """Logistic regression on cubic splines of every covariate and on their pairwise products.

    Parameters
    ----------
    table, flag, scaler, weights
        As `KernelModel` takes them.
    strength : float
        The inverse of the ridge penalty.
    like : SplineModel, optional
        Of the same table, scaler and weights: its splines are used again, and the fit starts from its coefficients.
    """

    def __init__(self, table, flag, strength, scaler, weights=None, like=None):
        self.scaler, self.strength, self.y = scaler, float(strength), np.asarray(flag, dtype=float)
        if like is None:
            self.weights = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=float)
            self.weights = self.weights / self.weights.mean()
            x = scaler.transform(table)
            self.spline = SplineTransformer(n_knots=5, degree=3, knots="quantile", extrapolation="linear",
                                            include_bias=False).fit(x[:, :-1])  # fmt: skip
            self.design, self.host = self._expand(x), stats.encode_groups(table["host_index"])
        else:
            self.weights, self.spline, self.design, self.host = like.weights, like.spline, like.design, like.host
        self.penalty = np.append(1e-9, np.full(self.design.shape[1] - 1, 1.0 / self.strength))
        self.theta = self._make_constant(np.average(self.y, weights=self.weights))
        self.single = len(np.unique(self.y)) < 2
        if not self.single:
            start = self.theta if like is None or like.single else like.theta
            self.theta = climb_likelihood(self.design, self.y, self.weights, self.penalty, start)

    def _expand(self, x):
        first, second = np.triu_indices(x.shape[1] - 1, k=1)
        products = x[:, first] * x[:, second]
        return np.column_stack([np.ones(len(x)), self.spline.transform(x[:, :-1]), products, x[:, -1]])

    def _make_constant(self, mean):
        theta, p = np.zeros(self.design.shape[1]), np.clip(mean, *BOUNDS)
        theta[0] = np.log(p / (1.0 - p))
        return theta

    def predict(self, table):
        """Return P(recovered) for each row, shape (n_query,)."""
        return expit(self._expand(self.scaler.transform(table)) @ self.theta)

    def predict_under(self, table, group, ratios):
        """Return `predict` of fits under other weights, as `KernelModel.predict_under`, shape (K, n_query)."""
        return expit(self.refit(group, ratios) @ self._expand(self.scaler.transform(table)).T)

    def refit(self, group, ratios):
        """Return the coefficients, (K, D), of fits with the weights of the rows of group g times ratios[k, g].

        Parameters
        ----------
        group : array_like of int, shape (N,)
        ratios : array_like of shape (K, G)
            0 leaves a group out.

        Notes
        -----
        All fits climb together, with the curvature under their own weights at the common start; one that has not come
        to rest after `MAX_STEPS` climbs alone. The penalty follows the mean weight of the rows that count, as if the
        weights had been scaled to a mean of 1.
        """
        group, ratios = np.asarray(group), np.asarray(ratios, dtype=float)
        n = ratios.shape[1]
        total, rows = np.bincount(group, self.weights, n), np.bincount(group, minlength=n).astype(float)
        found, weight = ratios @ np.bincount(group, self.weights * self.y, n), ratios @ total
        penalty = (weight / np.maximum((ratios > 0) @ rows, 1.0))[:, None] * self.penalty
        theta = np.stack([self._make_constant(m) for m in found / np.maximum(weight, 1e-30)])
        own = np.flatnonzero((found > 0) & (found < weight))  # the others have one class only: a constant
        if not len(own):
            return theta
        curvature, p = np.zeros((n, len(self.theta) ** 2)), expit(self.design @ self.theta)
        for g in range(n):
            x, w = self.design[group == g], (self.weights * p * (1.0 - p))[group == g]
            curvature[g] = ((x * w[:, None]).T @ x).ravel()
        shape = (len(own), len(self.theta), len(self.theta))
        curvature = (ratios[own] @ curvature).reshape(shape) + penalty[own, :, None] * np.eye(shape[1])
        inverse, row_weight = np.linalg.inv(curvature), self.weights[:, None] * ratios[own].T[group]
        moving = np.tile(self.theta, (len(own), 1))
        for _ in range(MAX_STEPS):
            residual = row_weight * (self.y[:, None] - expit(self.design @ moving.T))
            gradient = residual.T @ self.design - penalty[own] * moving
            step = np.einsum("kij,kj->ki", inverse, gradient)
            gain = np.sum(gradient * step, axis=1)
            if not np.isfinite(gain).all() or gain.max() < TOLERANCE:
                break
            moving = moving + step
        for k in np.flatnonzero(~(gain < TOLERANCE)):
            moving[k] = climb_likelihood(self.design, self.y, row_weight[:, k], penalty[own[k]], self.theta)
        theta[own] = moving
        return theta

    def draw(self, table, n, generator):
        """Return n host-bootstrap draws of `predict` (one Newton step each), shape (n, n_query)."""
        p = expit(self.design @ self.theta)
        curvature = (self.design * (self.weights * p * (1.0 - p))[:, None]).T @ self.design + np.diag(self.penalty)
        by_host = csr_matrix((np.ones(len(p)), (self.host, np.arange(len(p)))))
        scores = np.asarray(by_host @ (self.design * (self.weights * (self.y - p))[:, None]))
        steps = np.linalg.solve(curvature, scores.T).T  # influence of each host on theta
        times = np.concatenate(list(stats.draw_multiplicities(len(steps), n, generator)))
        return expit((self.theta + (times - 1.0) @ steps) @ self._expand(self.scaler.transform(table)).T)


def climb_likelihood(design, y, weights, penalty, start):
    """Return the coefficients of greatest penalised likelihood of a logistic regression (Newton's steps, shortened).

    Parameters
    ----------
    design : ndarray of shape (N, D)
    y, weights : ndarray of shape (N,)
    penalty, start : ndarray of shape (D,)
        Half the penalty times the squared coefficients is taken off the log-likelihood.
    """

    def value(vector, logit):
        return weights @ (y * logit - np.logaddexp(0.0, logit)) - 0.5 * penalty @ vector**2

    theta, logit = start, design @ start
    height = value(theta, logit)
    for _ in range(MAX_STEPS):
        p = expit(logit)
        gradient = design.T @ (weights * (y - p)) - penalty * theta
        curvature = (design * (weights * p * (1.0 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        if gradient @ step < TOLERANCE:
            break
        slope = design @ step
        while value(theta + step, logit + slope) < height - 1e-9 * abs(height):
            step, slope = 0.5 * step, 0.5 * slope
        theta, logit = theta + step, logit + slope
        height = value(theta, logit)
    return theta


def fit_model(choice, table, flag, scaler, weights=None):
    """Fit the chosen kind of model; `choice` is (kind, parameter) or the dict `choose_model` returns."""
    kind, parameter = (choice["kind"], choice["parameter"]) if isinstance(choice, dict) else choice
    model = KernelModel if kind == "kernel" else SplineModel
    return model(table, flag, parameter, scaler, weights)


def choose_model(table, flags, config, candidates=CANDIDATES, covariates=COVARIATES):
    """Choose the model of P(recovered) by cross-validated log-score, folds by host brick.

    Parameters
    ----------
    table : pandas.DataFrame
        The closure set only: covariates, host_index, brickname, injection_id.
    flags : dict of name -> array_like of bool, shape (N,)
        Recovered at each operating point; kernels and splines are worked out once for all of them.
    config : lensaudit.config.Config
    candidates : sequence of (kind, parameter)
    covariates : sequence of str

    Returns
    -------
    dict of name -> dict
        kind, parameter, score (mean log-likelihood), scores of all candidates and of the constant.

    Notes
    -----
    Scale and knots of the covariates are those of the whole table; they know no flag.
    """
    y, base = np.stack([np.asarray(f, dtype=float) for f in flags.values()], axis=1), take_weights(table)
    bricks = table["brickname"].astype(str).to_numpy()
    names = np.unique(bricks)
    fold_of = pd.Series((streams.hash_order(config.seed, "audit/recovery/fold", names) * N_FOLDS).astype(int), names)
    fold = fold_of.loc[bricks].to_numpy()
    order = streams.hash_order(config.seed, "audit/recovery/scored", table["injection_id"].astype(str))
    scored, present = np.sort(np.argsort(order)[:MAX_SCORED]), np.unique(fold)
    if len(present) < 2:
        raise UserError(f"closure set: its hosts lie in {len(names)} brick(s), too few to hold any out; inject more")
    scaler = fit_scaler(table, covariates)
    widths, strengths = (tuple(p for kind, p in candidates if kind == own) for own in ("kernel", "spline"))
    found = _hold_out_kernel(scaler.transform(table), y, base, fold, scored, widths)
    found |= _hold_out_spline(table, y, base, fold, scored, strengths, scaler)
    rest = np.stack([np.average(y[fold != f], weights=base[fold != f], axis=0) if f in present else y[0] * 0.0
                     for f in range(N_FOLDS)])  # fmt: skip
    found["constant 0"] = rest[fold[scored]]
    out, weight = {}, base[scored] / base[scored].sum()
    for column, name in enumerate(flags):
        truth, held = y[scored, column], {key: np.clip(p[:, column], *BOUNDS) for key, p in found.items()}
        scores = {k: float(weight @ (truth * np.log(p) + (1.0 - truth) * np.log1p(-p))) for k, p in held.items()}
        kind, parameter = max(candidates, key=lambda item, scores=scores: scores[f"{item[0]} {item[1]:g}"])
        out[name] = {"kind": kind, "parameter": parameter, "score": scores[f"{kind} {parameter:g}"], "scores": scores,
                     "covariates": list(scaler.names), "n_injections": len(table)}  # fmt: skip
    return out


def _hold_out_kernel(x, y, base, fold, scored, widths):
    """Return name -> P (n_scored, F) of kernels of several widths, each row from the other folds."""
    out = {f"kernel {width:g}": np.empty((len(scored), y.shape[1])) for width in widths}
    x = x.astype(np.float32)
    for number in np.unique(fold[scored]):
        rest, rows = np.flatnonzero(fold != number), np.flatnonzero(fold[scored] == number)
        both = (np.column_stack([y, np.ones(len(y))]) * base[:, None])[rest].astype(np.float32)
        for block in np.split(rows, range(BLOCK, len(rows), BLOCK)):
            square, _ = square_distances(x[scored[block]], x[rest])
            for width in widths:
                total = turn_to_kernel(square.copy(), width) @ both
                out[f"kernel {width:g}"][block] = total[:, :-1] / np.maximum(total[:, -1:], 1e-30)
    return out


def _hold_out_spline(table, y, base, fold, scored, strengths, scaler):
    """Return name -> P (n_scored, F) of spline regressions of several strengths, each row from the other folds."""
    out, model = {f"spline {strength:g}": np.empty((len(scored), y.shape[1])) for strength in strengths}, None
    for column in range(y.shape[1]):
        for strength in strengths:
            model = SplineModel(table, y[:, column], strength, scaler, base, model)
            theta = model.refit(fold, 1.0 - np.eye(N_FOLDS))
            logit = np.einsum("ij,ij->i", model.design[scored], theta[fold[scored]])
            out[f"spline {strength:g}"][:, column] = expit(logit)
    return out
