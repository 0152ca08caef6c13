"""Products of selection functions and further factors, with the uncertainty of each carried by draws."""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit import stats
from lensaudit.artifacts import UserError, hash_object, read_table
from lensaudit.audit.completeness import AXES
from lensaudit.selection.cells import N_DRAWS, Cells, broadcast_points, check_level
from lensaudit.selection.footprint import average_footprint
from lensaudit.selection.rates import count_lenses


class Selection:
    """What selection functions and their products can do: multiply, average over a footprint, count lenses.

    Either kind has ``query``, ``parts(threshold, prior, threshold_error)`` -> list of `Cells`, ``describe(threshold,
    prior, level, threshold_error)`` and ``product``, the selection function whose grid and footprint are used.
    """

    def __mul__(self, other):
        """Return the product with another selection function, a `Factor` or a number, all taken as independent."""
        return ComposedSelection([self, other])

    __rmul__ = __mul__

    def average(self, footprint=None, threshold=None, prior=None, level=0.95, max_missing=0.1, threshold_error=False):
        """Average over a footprint's seeing and depth; see `footprint.average_footprint`."""
        return average_footprint(self, footprint, threshold, prior, level, max_missing, threshold_error)

    def expected_counts(self, rate, footprint=None, threshold=None, prior=None, level=0.95, max_missing=0.1,
                        threshold_error=False):  # fmt: skip
        """Count the lenses that are found; see `rates.count_lenses`."""
        return count_lenses(self, rate, footprint, threshold, prior, level, max_missing, threshold_error)

    def draw(self, theta_E=None, seeing=None, depth=None, threshold=None, prior=None, n=N_DRAWS, seed=0,
             threshold_error=False, **others):  # fmt: skip
        """Return draws of the probability at points, ndarray of shape (n, N); NaN outside the support."""
        values = broadcast_points(theta_E, seeing, depth, others)
        parts = self.parts(threshold, prior, threshold_error)
        places, reason, _ = _locate(parts, values)
        unique, inverse = _find_unique(parts, places)
        drawn = np.clip(_multiply_draws(parts, unique, n, seed, threshold_error), 0.0, 1.0)
        return np.where(reason == 0, drawn[:, inverse], np.nan)

    def draw_centred(self, values, p, threshold=None, prior=None, threshold_error=False):
        """Return draws at points to be summed, ndarray of shape (N_DRAWS, N): of mean p, 0 outside the support.

        The mean of a Jeffreys posterior lies nearer to 1/2 than k/n, by little in a cell and the same way in all, so
        that it would not average out. The error of the threshold comes on top, as lopsided as it is.

        Parameters
        ----------
        values : dict of axis -> ndarray of shape (N,)
        p : ndarray of shape (N,)
            From `query` there; NaN outside the support.
        threshold, prior, threshold_error
            As for `query`.
        """
        parts = self.parts(threshold, prior, threshold_error)
        unique, inverse = _find_unique(parts, _locate(parts, values)[0])
        drawn = _multiply_draws(parts, unique)
        centre = drawn.mean(axis=0)
        drawn = _multiply_draws(parts, unique, threshold_error=True) if threshold_error else drawn
        return np.nan_to_num((drawn - centre)[:, inverse] + p)


def _locate(parts, values):
    """Return cell numbers (parts, N), and reasons (N,) as index into a list of texts, those of the first part first."""
    texts, reason, places = [""], np.zeros(len(values[AXES[0]]), dtype=np.int16), []
    for part in parts:
        number, own = part.locate(values)
        new = [text for text in part.reasons if text not in texts]
        texts += new
        index = np.array([texts.index(text) for text in part.reasons], dtype=np.int16)
        reason = np.where(reason > 0, reason, index[own])
        places.append(number)
    return np.stack(places), reason, texts


def _find_unique(parts, places):
    """Return the different combinations of cells (parts, M) and which of them each point is (N,)."""
    shape = [len(part.table) for part in parts]
    codes, inverse = np.unique(np.ravel_multi_index(tuple(places), shape), return_inverse=True)
    return np.stack(np.unravel_index(codes, shape)), inverse.reshape(-1)


def _multiply_draws(parts, unique, n=N_DRAWS, seed=0, threshold_error=False):
    """Return draws of the product of the parts at combinations of their cells, ndarray of shape (n, M)."""
    drawn = np.ones((n, unique.shape[1]))
    for part, numbers in zip(parts, unique, strict=True):
        own, back = np.unique(numbers, return_inverse=True)
        drawn *= part.draw(own, n, seed, threshold_error)[:, back.reshape(-1)]
    return drawn


class Factor:
    """A probability to multiply a selection function with, such as that of a spectroscopic confirmation.

    Parameters
    ----------
    p : float, pandas.DataFrame or path
        A constant; or a table with p on one to three of the axes theta_E, seeing, depth (every combination of its
        centres once, in equal steps) and sigma, or lower and upper (95 %). A path is one of a CSV or Parquet file.
    sigma : float
        Standard deviation of a constant; 0 takes it as exact.
    name : str
        Factors of one name and content are the same quantity: they are drawn together.

    Notes
    -----
    The uncertainty is a Beta distribution of that mean and standard deviation, (upper - lower) / 3.92 where bounds are
    given. Outside the axes of a table the product has no support; inside it is constant in each cell.
    """

    def __init__(self, p, sigma=0.0, name="factor"):
        self.name = name
        if not isinstance(p, (str, Path, pd.DataFrame)):
            p = pd.DataFrame({"p": [p], "sigma": [sigma]})
        elif not isinstance(p, pd.DataFrame):
            p = read_table(p) if str(p).endswith(".parquet") else _read_csv(p)
        axes = [axis for axis in AXES if axis in p]
        unknown = sorted(set(p) - {*AXES, "p", "sigma", "lower", "upper"})
        if unknown or "p" not in p:
            wrong = f"column {unknown[0]} unknown" if unknown else "column p missing"
            raise UserError(f"factor {name}: {wrong}; use p, sigma or lower and upper, {', '.join(AXES)}")
        table = p.sort_values(axes, kind="stable").reset_index(drop=True) if axes else p.reset_index(drop=True)
        centres = {axis: np.unique(table[axis].to_numpy(dtype=float)) for axis in axes}
        if len(table) != np.prod([len(c) for c in centres.values()]) or table[axes].duplicated().any():
            raise UserError(f"factor {name}: the table must hold every combination of {', '.join(axes)} once")
        self.cells = Cells(centres, _fit_beta(table, name), f"factor/{name}/{hash_object(table.to_dict('list'))[:16]}")

    def parts(self, threshold=None, prior=None, threshold_error=False):
        """Return its cells; it has neither operating point nor prior."""
        return [self.cells]


def _read_csv(path):
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"factor {Path(path).name}: unreadable as CSV ({error})") from None


def _fit_beta(table, name):
    """Return p with alpha and beta of a Beta distribution of its mean and standard deviation."""
    try:
        p = table["p"].to_numpy(dtype=float)
        bounds = (table["upper"] - table["lower"]) / 3.92 if {"upper", "lower"} <= set(table) else 0.0
        sigma = (table["sigma"] if "sigma" in table else bounds + 0.0 * table["p"]).to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise UserError(f"factor {name}: not a number ({error})") from None
    if not ((p >= 0) & (p <= 1)).all() or not (sigma >= 0).all():
        raise UserError(f"factor {name}: p must lie in 0 to 1 and its uncertainty be known; it is no probability else")
    if ((sigma > 0) & (sigma**2 >= p * (1 - p))).any():
        raise UserError(f"factor {name}: a probability of {p[sigma > 0][0]:g} cannot scatter so much; lower sigma")
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(sigma > 0, p * (1 - p) / sigma**2 - 1.0, np.nan)
    return pd.DataFrame({"p": p, "alpha": p * total, "beta": (1 - p) * total, "sufficient": True, "reason": ""})


class ComposedSelection(Selection):
    """A product of selection functions and factors, whose errors are taken as independent of each other.

    Parameters
    ----------
    factors : sequence
        Of `SelectionFunction`, `ComposedSelection`, `Factor` and numbers; at least one is a selection function.
    """

    def __init__(self, factors):
        self.factors = []
        for factor in factors:
            if isinstance(factor, (int, float, np.floating)):
                factor = Factor(float(factor), name="number")
            if not isinstance(factor, (Selection, Factor)):
                raise UserError(f"a selection function cannot be multiplied with a {type(factor).__name__}; use Factor")
            self.factors += factor.factors if isinstance(factor, ComposedSelection) else [factor]
        self.product = next(f for f in self.factors if isinstance(f, Selection))

    def parts(self, threshold=None, prior=None, threshold_error=False):
        """Return the cells of every factor."""
        return [part for factor in self.factors for part in factor.parts(threshold, prior, threshold_error)]

    def describe(self, threshold=None, prior=None, level=0.95, threshold_error=False):
        """Return what a result is of: that of each selection function, the factors, and the assumption."""
        own = [f.describe(threshold, prior, level, threshold_error) for f in self.factors if isinstance(f, Selection)]
        names = [f.name for f in self.factors if isinstance(f, Factor)]
        # A product is no better than the least of its factors.
        closes = next((d["closes"] for d in own if d["closes"] is not True), True)
        return own[0] | {"closes": closes, "blocked_by": sum((d["blocked_by"] for d in own), []), "factors": names,
                         "assumption": "factors are independent"}  # fmt: skip

    def query(self, theta_E=None, seeing=None, depth=None, threshold=None, prior=None, level=0.95,
              threshold_error=False, **others):  # fmt: skip
        """Return the product's probability; arguments and columns as those of `SelectionFunction.query`.

        p is the product of the factors' values, lower and upper are quantiles of the product of draws, n_eff =
        p (1 - p) / variance - 1. A point is in support where it is for every factor.
        """
        check_level(level)
        values = broadcast_points(theta_E, seeing, depth, others)
        parts = self.parts(threshold, prior, threshold_error)
        places, reason, texts = _locate(parts, values)
        support, out = reason == 0, pd.DataFrame(values)
        unique, inverse = _find_unique(parts, places[:, support])
        p, drawn = np.ones(unique.shape[1]), _multiply_draws(parts, unique, threshold_error=threshold_error)
        for part, numbers in zip(parts, unique, strict=True):
            p *= part.table["p"].to_numpy(dtype=float)[numbers]
        lower, upper = np.clip(stats.summarise_draws(drawn, level), 0.0, 1.0) if len(p) else (p, p)
        with np.errstate(divide="ignore"):
            n_eff = np.maximum(p * (1 - p) / np.var(drawn, axis=0) - 1.0, 0.0)
        for name, column in (("p", p), ("lower", lower), ("upper", upper), ("n_eff", n_eff)):
            own = np.full(len(out), 0.0 if name == "n_eff" else np.nan)
            own[support] = column[inverse]
            out[name] = own
        out = out.assign(in_support=support, reason=pd.Categorical.from_codes(reason, categories=texts))
        out.attrs.update(self.describe(threshold, prior, level, threshold_error))
        return out
