"""A smooth model of P(recovered | theta_E, seeing, depth, further axes), beside the raw cells and never in their place.

Logistic regression on cubic B-splines of every axis and on the products of every two axes. Each block of coefficients
is pooled towards zero, that is towards a flat completeness, by a penalty of its own that the data choose (empirical
Bayes); noise and penalties know that rows of one host are correlated. Nothing is forced to be monotone in any axis.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.linalg import eigh, null_space
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.preprocessing import SplineTransformer

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.recovery import Scaler, fit_scaler

SMOOTH_AXES = ("theta_E", "psfsize_r", "depth_r")
N_KNOTS = 8  # evenly spaced between the 0.5 and 99.5 per cent points of an axis; constant outside
N_PAIRED = 4  # smoothest functions of each axis that enter the products
INTERCEPT_PRECISION = 0.01  # keeps the fit finite where every row, or none, was recovered
TOLERANCE = 2e-3  # of the fitted logits (root mean square) between two rounds
MAX_ROUNDS = 60
WARM_UP = 3  # rounds before the penalties move


@dataclass(frozen=True)
class SplineBasis:
    """Smooth functions of the axes, ordered from the straight line to the roughest, and of their pairs.

    Attributes
    ----------
    scaler : recovery.Scaler
    spline : sklearn.preprocessing.SplineTransformer
    rotations : tuple of ndarray
        Per axis, from B-splines to functions of zero mean and unit variance over the rows of the fit.
    weights : ndarray of shape (P,)
        Relative penalty of each column of the design; that of the straight line is that of the first bend.
    blocks : ndarray of shape (P,)
        Number of the block of each column, in the order of `names`.
    names : tuple of str
        "intercept", "slopes" (the straight lines of all axes), each axis, each pair.
    """

    scaler: Scaler
    spline: SplineTransformer
    rotations: tuple
    weights: np.ndarray
    blocks: np.ndarray
    names: tuple

    def transform(self, table):
        """Return the design, shape (N, P), of rows with the axes' columns."""
        values = self.spline.transform(self.scaler.transform(table)[:, :-1])
        size = len(self.rotations[0])
        parts = [values[:, i * size : (i + 1) * size] @ rotation for i, rotation in enumerate(self.rotations)]
        pairs = [(a[:, :N_PAIRED, None] * b[:, None, :N_PAIRED]).reshape(len(values), -1)
                 for a, b in combinations(parts, 2)]  # fmt: skip
        return np.column_stack([np.ones(len(values)), *parts, *pairs])


def make_basis(table, axes=SMOOTH_AXES):
    """Make the basis from the rows' axes alone; no flag enters.

    Parameters
    ----------
    table : pandas.DataFrame
        With the axes' columns, finite.
    axes : sequence of str

    Returns
    -------
    SplineBasis

    Raises
    ------
    UserError
        When a column is missing, has values that are not finite, or does not vary.

    Notes
    -----
    Demmler-Reinsch functions of the penalty on second differences of B-spline coefficients (Eilers & Marx 1996,
    Statistical Science 11, 89), so that every penalty is diagonal. A product is penalised by the sum of the penalties
    of its factors.
    """
    scaler = fit_scaler(table, axes)
    finite = np.isfinite(table[list(axes)].to_numpy(dtype=float))
    for name, known in zip(axes, finite.T, strict=True):
        if not known.all():
            first = table["injection_id"].iloc[known.argmin()] if "injection_id" in table else known.argmin()
            raise UserError(f"column {name} is not finite in {int((~known).sum())} injection(s), the first {first}; "
                            "leave them out, or this axis")  # fmt: skip
    x = scaler.transform(table)[:, :-1]
    low, high = np.percentile(x, [0.5, 99.5], axis=0)
    flat = [name for name, a, b in zip(axes, low, high, strict=True) if not b > a]
    if flat:
        raise UserError(f"axis {', '.join(flat)} does not vary over the injections; leave it out of the smooth model")
    spline = SplineTransformer(degree=3, knots=np.linspace(low, high, N_KNOTS), extrapolation="constant").fit(x)
    values, size = spline.transform(x), N_KNOTS + 2
    rotations, rough = zip(*(_rotate(values[:, i * size : (i + 1) * size]) for i in range(len(axes))), strict=True)
    weights, names = [np.ones(1), *rough], ["intercept", "slopes", *axes]
    blocks = [[0], *(np.where(np.arange(len(r)) == 0, 1, 2 + i) for i, r in enumerate(rough))]
    for a, b in combinations(range(len(axes)), 2):
        weights.append((rough[a][:N_PAIRED, None] + rough[b][None, :N_PAIRED]).ravel())
        blocks.append(np.full(weights[-1].size, len(names)))
        names.append(f"{axes[a]} x {axes[b]}")
    return SplineBasis(scaler, spline, rotations, np.concatenate(weights), np.concatenate(blocks), tuple(names))


def _rotate(values):
    """Return the rotation of one axis's B-splines and the relative penalties of the rotated functions."""
    free = null_space(values.mean(axis=0)[None])  # zero mean, so that the intercept is the mean logit
    bends = np.diff(np.eye(values.shape[1]), n=2, axis=0) @ free
    spread = (values @ free).T @ (values @ free) / len(values)
    spread += 1e-6 * np.trace(spread) * np.eye(len(spread))
    rough, vectors = eigh(bends.T @ bends, spread)
    # The sign of an eigenvector is the library's choice; it is fixed, so that two machines give the same columns.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(rough))])
    return free @ vectors, np.append(1.0, rough[1:] / rough[1])


@dataclass(frozen=True)
class SmoothModel:
    """A fitted smooth model.

    Attributes
    ----------
    basis : SplineBasis
    theta : ndarray of shape (P,)
    covariance : ndarray of shape (P, P)
        Mean square error of `theta` under the prior: host-clustered noise plus what the penalties may have smoothed
        away.
    penalties : ndarray of shape (n_blocks,)
        Prior precision of a block's coefficients, in units of `SplineBasis.weights`.
    dispersions : ndarray of shape (n_blocks,)
        Host-clustered variance of a block's coefficients over that of independent rows, at least 1.
    sizes : ndarray of shape (n_blocks,)
        Effective number of parameters of each block.
    n_rounds : int
    converged : bool
    """

    basis: SplineBasis
    theta: np.ndarray
    covariance: np.ndarray
    penalties: np.ndarray
    dispersions: np.ndarray
    sizes: np.ndarray
    n_rounds: int
    converged: bool

    def predict(self, table):
        """Return P(recovered) at the posterior mode for each row, shape (N,)."""
        return expit(self.basis.transform(table) @ self.theta)

    def draw_coefficients(self, n, generator):
        """Return n posterior draws of the coefficients, shape (n, P)."""
        value, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.clip(value, 0.0, None))
        return self.theta + generator.standard_normal((n, len(self.theta))) @ root.T

    def draw(self, table, n, generator):
        """Return n posterior draws of `predict`, shape (n, N)."""
        return expit(self.draw_coefficients(n, generator) @ self.basis.transform(table).T)

    def describe(self):
        """Return a table of the blocks: penalty, effective number of parameters, dispersion."""
        return pd.DataFrame({"block": self.basis.names, "penalty": self.penalties, "n_parameters": self.sizes,
                             "dispersion": self.dispersions, "n_rounds": self.n_rounds,
                             "converged": self.converged})  # fmt: skip


def fit_smooth(table, flag, axes=SMOOTH_AXES):
    """Fit the smooth model of P(recovered) to scored injections.

    Parameters
    ----------
    table : pandas.DataFrame
        Injections with the axes' columns and host_index.
    flag : array_like of bool, shape (N,)
        Recovered or not.
    axes : sequence of str
        Columns; theta_E [arcsec], psfsize_r [arcsec], depth_r [AB mag] by default, others by name.

    Returns
    -------
    SmoothModel

    Raises
    ------
    UserError
        See `make_basis`; also for fewer than two hosts.

    Notes
    -----
    See `fit_design`.
    """
    basis = make_basis(table, axes)
    return fit_design(basis, basis.transform(table), flag, table["host_index"])


def fit_design(basis, design, flag, host, start=None):
    """Fit coefficients and penalties on a design.

    Parameters
    ----------
    basis : SplineBasis
    design : ndarray of shape (N, P)
    flag : array_like of shape (N,)
    host : array_like of shape (N,)
    start : SmoothModel, optional
        Where to begin; the result agrees with that of any other beginning within `TOLERANCE`.

    Returns
    -------
    SmoothModel

    Notes
    -----
    With H the information of independent rows, J the host-clustered covariance of the scores and A = (H + phi lambda
    D)^-1, each block j takes phi_j = tr (A J)_jj / tr (A H)_jj, a design effect (Rao & Scott 1984, Annals of
    Statistics 12, 46), and lambda_j = tr (A H)_jj / theta_j^T D_j theta_j, the fixed point of the marginal likelihood
    (Wood & Fasiolo 2017, Biometrics 73, 1071) tempered by phi_j. No block is pooled harder than to the sampling
    error of its smoothest function: a penalty that the data cannot tell from infinity would leave a band of no width.
    The covariance of theta - truth under the prior is A (J + phi^2 lambda D) A, which is A for independent rows
    (Nychka 1988, JASA 83, 1134).
    """
    y, code = np.asarray(flag, dtype=float), stats.encode_groups(host)
    n_hosts = int(code.max(initial=-1)) + 1
    if n_hosts < 2:
        raise UserError("the smooth model needs injections in two hosts or more; column host_index has fewer")
    by_host = csr_matrix((np.ones(len(y)), (code, np.arange(len(y)))), shape=(n_hosts, len(y)))
    blocks, n_blocks = basis.blocks, len(basis.names)
    theta, lam, phi = np.zeros(len(blocks)), np.ones(n_blocks), np.ones(n_blocks)
    lam[0] = INTERCEPT_PRECISION
    if start is not None:
        theta, lam, phi = start.theta, start.penalties.copy(), start.dispersions
    converged, logit = False, design @ theta
    for number in range(1, MAX_ROUNDS + 1):
        p = expit(logit)
        information = design.T @ (design * (p * (1.0 - p))[:, None])
        scores = by_host @ (design * (y - p)[:, None])
        scores -= scores.mean(axis=0)
        noise = scores.T @ scores * n_hosts / (n_hosts - 1)
        inverse = np.linalg.inv(information + np.diag(phi[blocks] * lam[blocks] * basis.weights))
        sizes = np.bincount(blocks, weights=np.sum(inverse * information, axis=1), minlength=n_blocks)
        if number > WARM_UP or start is not None:
            spread = np.bincount(blocks, weights=np.sum(inverse * noise, axis=1), minlength=n_blocks)
            phi = np.maximum(spread / sizes, 1.0)
            square = np.bincount(blocks, weights=basis.weights * theta**2, minlength=n_blocks)
            most = [np.max(np.diag(information)[blocks == j] / basis.weights[blocks == j]) for j in range(n_blocks)]
            lam[1:] = np.minimum(sizes[1:] / np.maximum(square[1:], 1e-12), (np.array(most) / phi)[1:])
        theta = _climb(design, y, theta, information, phi[blocks] * lam[blocks] * basis.weights)
        before, logit = logit, design @ theta
        converged = bool(number > WARM_UP + 1 and np.sqrt(np.mean((logit - before) ** 2)) < TOLERANCE)
        if converged:
            break
    prior = phi[blocks] * lam[blocks] * basis.weights
    inverse = np.linalg.inv(information + np.diag(prior))
    covariance = inverse @ (noise + np.diag(phi[blocks] * prior)) @ inverse
    return SmoothModel(basis, theta, 0.5 * (covariance + covariance.T), lam, phi, sizes, number, converged)


def _climb(design, y, theta, information, penalty):
    """Take one Newton step up the penalised log-likelihood, shortened until it does not lead down."""

    def value(vector):
        logit = design @ vector
        return np.sum(y * logit - np.logaddexp(0.0, logit)) - 0.5 * np.sum(penalty * vector**2)

    gradient = design.T @ (y - expit(design @ theta)) - penalty * theta
    step, height = np.linalg.solve(information + np.diag(penalty), gradient), value(theta)
    while value(theta + step) < height - 1e-9 * abs(height):
        step = 0.5 * step
    return theta + step
