"""P(recovered | covariates) from injections: a kernel-weighted fraction and a spline logistic regression.

Both know their base weights and their hosts, so that a host-clustered bootstrap of any prediction is a matrix product.
Which of them closure uses is decided by the cross-validated log-score inside the injections, before a lens is seen.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
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
SUPPORT_BANDWIDTH = 0.5  # of the robust scatter of each covariate; defines the local effective size
CANDIDATES = (("kernel", 0.3), ("kernel", 0.45), ("kernel", 0.7), ("spline", 0.3), ("spline", 3.0), ("spline", 30.0))
N_FOLDS = 5
MAX_SCORED = 4000  # held-out rows the log-score is taken on
BOUNDS = (1e-3, 1.0 - 1e-3)  # of a probability in the log-score


@dataclass(frozen=True)
class Scaler:
    """Centre and scale of the covariates, from the injections alone."""

    names: tuple
    centre: np.ndarray
    scale: np.ndarray

    def transform(self, table):
        """Return standardised covariates (N, D + 1); the last column flags an arc whose colour was not measurable."""
        values = _take_covariates(table, self.names)
        missing = ~np.isfinite(values)
        scaled = np.where(missing, 0.0, (values - self.centre) / self.scale)
        colour = missing[:, self.names.index("arc_g_r")] if "arc_g_r" in self.names else np.zeros(len(values), bool)
        return np.column_stack([np.clip(scaled, -6.0, 6.0), 2.0 * colour])


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
    needed = [name for name in names if name != "arc_g_r"]
    return np.isfinite(_take_covariates(table, needed)).all(axis=1)


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
        query = (self.scaler.transform(table) / self.bandwidth).astype(np.float32)
        square = (query**2).sum(1)[:, None] + (self.x**2).sum(1)[None, :] - 2.0 * query @ self.x.T
        square -= square.min(axis=1, keepdims=True)
        return np.exp(-0.5 * square) * self.weights.astype(np.float32)[None, :]

    def predict(self, table):
        """Return P(recovered) for each row, shape (n_query,)."""
        weight = self.weigh(table)
        return (weight @ self.y / np.maximum(weight.sum(axis=1), 1e-30)).astype(float)

    def draw(self, table, n, generator):
        """Return n host-bootstrap draws of `predict`, shape (n, n_query)."""
        weight = self.weigh(table)
        by_host = csr_matrix((np.ones(len(self.y)), (np.arange(len(self.y)), self.host)))
        total, found = weight @ by_host, (weight * self.y) @ by_host
        n_hosts, centre = total.shape[1], self.predict(table)
        times = generator.multinomial(n_hosts, np.full(n_hosts, 1.0 / n_hosts), size=n).astype(float)
        top, bottom = times @ np.asarray(found).T, times @ np.asarray(total).T
        return np.where(bottom > 0, top / np.maximum(bottom, 1e-30), centre)

    def local_n_eff(self, table):
        """Return the host-clustered Kish effective size of the kernel weights of each row, shape (n_query,)."""
        by_host = csr_matrix((np.ones(len(self.y)), (np.arange(len(self.y)), self.host)))
        query = (self.scaler.transform(table) / self.bandwidth).astype(np.float32)
        nearest = np.sqrt(np.maximum(_nearest_square(query, self.x), 0.0))
        total = np.asarray(self.weigh(table) @ by_host, dtype=float)
        size = total.sum(axis=1) ** 2 / np.maximum((total**2).sum(axis=1), 1e-30)
        return np.where(nearest < 4.0, size, 0.0)  # no injection within four bandwidths: extrapolation, not support


def _nearest_square(query, x):
    square = (query**2).sum(1)[:, None] + (x**2).sum(1)[None, :] - 2.0 * query @ x.T
    return square.min(axis=1)


class SplineModel:
    """Logistic regression on cubic splines of every covariate and on their pairwise products.

    Parameters are those of `KernelModel`, with `strength`, the inverse of the ridge penalty, for the bandwidth.
    """

    def __init__(self, table, flag, strength, scaler, weights=None):
        self.scaler, self.strength = scaler, float(strength)
        x = scaler.transform(table)
        y = np.asarray(flag, dtype=float)
        self.weights = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=float)
        self.weights = self.weights / self.weights.mean()
        self.spline = SplineTransformer(n_knots=5, degree=3, knots="quantile", extrapolation="linear",
                                        include_bias=False).fit(x[:, :-1])  # fmt: skip
        design = self._design(x)
        self.constant = float(np.clip(np.average(y, weights=self.weights), *BOUNDS))
        self.single = len(np.unique(y)) < 2
        self.theta = np.zeros(design.shape[1])
        self.theta[0] = np.log(self.constant / (1.0 - self.constant))
        if not self.single:
            fit = LogisticRegression(C=self.strength, solver="newton-cholesky", max_iter=200)
            fit.fit(design[:, 1:], y, sample_weight=self.weights)
            self.theta = np.append(fit.intercept_, fit.coef_[0])
        p = expit(design @ self.theta)
        information = design.T @ (design * (self.weights * p * (1 - p))[:, None])
        penalty = np.diag(np.append(1e-9, np.full(design.shape[1] - 1, 1.0 / self.strength)))
        host = stats.encode_groups(table["host_index"])
        by_host = csr_matrix((np.ones(len(y)), (host, np.arange(len(y)))))
        scores = np.asarray(by_host @ (design * (self.weights * (y - p))[:, None]))
        self.steps = np.linalg.solve(information + penalty, scores.T).T  # influence of each host on theta

    def _design(self, x):
        first, second = np.triu_indices(x.shape[1] - 1, k=1)
        products = x[:, first] * x[:, second]
        return np.column_stack([np.ones(len(x)), self.spline.transform(x[:, :-1]), products, x[:, -1]])

    def predict(self, table):
        """Return P(recovered) for each row, shape (n_query,)."""
        return expit(self._design(self.scaler.transform(table)) @ self.theta)

    def draw(self, table, n, generator):
        """Return n host-bootstrap draws of `predict` (one Newton step each), shape (n, n_query)."""
        n_hosts = len(self.steps)
        times = generator.multinomial(n_hosts, np.full(n_hosts, 1.0 / n_hosts), size=n) - 1.0
        return expit((self.theta + times @ self.steps) @ self._design(self.scaler.transform(table)).T)


def fit_model(choice, table, flag, scaler, weights=None):
    """Fit the chosen kind of model; `choice` is (kind, parameter) or the dict `choose_model` returns."""
    kind, parameter = (choice["kind"], choice["parameter"]) if isinstance(choice, dict) else choice
    model = KernelModel if kind == "kernel" else SplineModel
    return model(table, flag, parameter, scaler, weights)


def choose_model(table, flag, config, candidates=CANDIDATES, covariates=COVARIATES):
    """Choose the model of P(recovered) by cross-validated log-score, folds by host brick.

    Parameters
    ----------
    table : pandas.DataFrame
        The closure set only: covariates, host_index, brickname, injection_id.
    flag : array_like of bool, shape (N,)
    config : lensaudit.config.Config
    candidates : sequence of (kind, parameter)
    covariates : sequence of str

    Returns
    -------
    dict
        kind, parameter, score (mean log-likelihood), scores of all candidates and of the constant.
    """
    flag, base = np.asarray(flag, dtype=float), take_weights(table)
    bricks = table["brickname"].astype(str).to_numpy()
    names = np.unique(bricks)
    fold_of = pd.Series((streams.hash_order(config.seed, "audit/recovery/fold", names) * N_FOLDS).astype(int), names)
    fold = fold_of.loc[bricks].to_numpy()
    order = streams.hash_order(config.seed, "audit/recovery/scored", table["injection_id"].astype(str))
    scored = np.zeros(len(table), dtype=bool)
    scored[np.argsort(order)[:MAX_SCORED]] = True
    scaler, out = fit_scaler(table, covariates), {}
    for kind, parameter in (*candidates, ("constant", 0.0)):
        total, count = 0.0, 0
        for number in range(N_FOLDS):
            rows, rest = np.flatnonzero(scored & (fold == number)), np.flatnonzero(fold != number)
            if not len(rows) or not len(rest):
                continue
            if kind == "constant":
                p = np.full(len(rows), np.average(flag[rest], weights=base[rest]))
            else:
                model = fit_model((kind, parameter), table.iloc[rest], flag[rest], scaler, base[rest])
                p = model.predict(table.iloc[rows])
            p = np.clip(p, *BOUNDS)
            total += np.sum(base[rows] * (flag[rows] * np.log(p) + (1 - flag[rows]) * np.log1p(-p)))
            count += base[rows].sum()
        out[f"{kind} {parameter:g}"] = total / max(count, 1e-9)
    kind, parameter = max(candidates, key=lambda item: out[f"{item[0]} {item[1]:g}"])
    return {"kind": kind, "parameter": parameter, "score": out[f"{kind} {parameter:g}"], "scores": out,
            "covariates": list(scaler.names), "n_injections": len(table)}  # fmt: skip
