"""Intervals, bootstraps, ranking metrics, calibration and paired tests, all weighted and vectorised.

Proportions get a Beta (Jeffreys) posterior, aggregates a bootstrap over groups, so that objects of one region, brick or
host are kept together. Nothing here knows of lenses, thresholds on disk or configuration.
"""

import numpy as np
from scipy import special, stats

MIN_DELONG = 2  # objects of each class that the DeLong variance needs


def jeffreys_interval(k, n, level=0.95):
    """Equal-tailed interval of the Jeffreys posterior Beta(k + 1/2, n - k + 1/2).

    Parameters
    ----------
    k, n : float or array_like
        Successes and trials; effective (non-integer) counts are allowed. `n` = 0 gives (0, 1).
    level : float

    Returns
    -------
    lower, upper : ndarray or float
        With the usual convention that `lower` is 0 at k = 0 and `upper` is 1 at k = n (Brown, Cai & DasGupta 2001,
        Statistical Science 16, 101).
    """
    k, n = _check_counts(k, n)
    tail = 0.5 * (1.0 - level)
    lower = np.where(k <= 0, 0.0, special.betaincinv(k + 0.5, n - k + 0.5, tail))
    upper = np.where(k >= n, 1.0, special.betaincinv(k + 0.5, n - k + 0.5, 1.0 - tail))
    return lower[()], upper[()]


def wilson_interval(k, n, level=0.95):
    """Wilson score interval of a proportion; shapes as `jeffreys_interval`."""
    k, n = _check_counts(k, n)
    z2 = stats.norm.ppf(0.5 + 0.5 * level) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        p = k / n
        centre = (p + 0.5 * z2 / n) / (1.0 + z2 / n)
        half = np.sqrt(z2 * (p * (1.0 - p) / n + 0.25 * z2 / n**2)) / (1.0 + z2 / n)
    empty = n <= 0
    lower = np.where(empty, 0.0, np.clip(centre - half, 0.0, 1.0))
    upper = np.where(empty, 1.0, np.clip(centre + half, 0.0, 1.0))
    return lower[()], upper[()]


def clopper_pearson(k, n, level=0.95):
    """Clopper-Pearson (exact, conservative) interval of a proportion; shapes as `jeffreys_interval`."""
    k, n = _check_counts(k, n)
    tail = 0.5 * (1.0 - level)
    with np.errstate(invalid="ignore"):
        lower = np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1e-12), n - k + 1.0, tail))
        upper = np.where(k >= n, 1.0, special.betaincinv(k + 1.0, np.maximum(n - k, 1e-12), 1.0 - tail))
    return lower[()], upper[()]


def _check_counts(k, n):
    k, n = np.broadcast_arrays(np.asarray(k, dtype=float), np.asarray(n, dtype=float))
    if np.any(k < 0) or np.any(k > n * (1 + 1e-12)):
        raise ValueError("counts must satisfy 0 <= k <= n")
    return np.minimum(k, n), n


def weighted_quantile(values, q, weights=None):
    """Smallest value v for which the weighted share of values <= v reaches q.

    Parameters
    ----------
    values : array_like of shape (N,)
    q : float or array_like in [0, 1]
    weights : array_like of shape (N,), optional

    Returns
    -------
    float or ndarray
        NaN for an empty or weightless sample.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if values.size == 0 or weights.sum() <= 0:
        return np.full(np.shape(q), np.nan)[()]
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    share /= share[-1]
    # The tolerance keeps q = 1 - k/N on the k-th largest value in spite of rounding.
    index = np.searchsorted(share, np.asarray(q, dtype=float) - 1e-12, side="left")
    return values[order][np.minimum(index, len(values) - 1)]


def kish_n_eff(weights, groups=None):
    """Kish's effective sample size (sum w)^2 / sum w^2 (float), of group totals when `groups` (N,) is given."""
    weights = np.asarray(weights, dtype=float)
    if groups is not None:
        weights = np.bincount(encode_groups(groups), weights=weights)
    square = np.sum(weights**2)
    return float(np.sum(weights) ** 2 / square) if square > 0 else 0.0


def encode_groups(groups):
    """Return the groups as integers 0 .. G-1 in sorted order of their labels."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def pair_correlation(flag, host, brick, cell=None):
    """Correlation of a flag between two rows of one host, and between two hosts of one brick, pooled over cells.

    Parameters
    ----------
    flag, host, brick, cell : array_like of shape (N,)
        Rows of a cell share an expected value, and pairs are taken inside it; without `cell` all are one.

    Returns
    -------
    rho_h, rho_b : float
        Clipped so that 1 >= rho_h >= rho_b >= 0; 0 without any pair.

    Notes
    -----
    Residuals r = M f about a cell's own mean, M = I - 11'/n, have E[r'Xr] = sigma^2 tr(M X M V), V = a I + b H + c B,
    H and B being 1 for two rows of one host or brick. Summed over cells, each with its Bernoulli variance, X = I, H, B
    give a, b, c (Henderson 1953, Biometrics 9, 226); rho_h = (b + c) / (a + b + c), rho_b = c / (a + b + c). Without M
    both come out low by about 1/n_eff.
    """
    flag = np.asarray(flag, dtype=float)
    cell = encode_groups(np.zeros(len(flag)) if cell is None else cell)
    n = np.bincount(cell).astype(float)
    mean = np.bincount(cell, weights=flag) / n
    # A host is counted inside its brick, so that a label used in two bricks cannot pair them.
    brick_code = encode_groups(encode_groups(brick) * len(n) + cell)
    host_code = encode_groups(encode_groups(host) * (brick_code.max(initial=0) + 1) + brick_code)
    codes = [np.arange(len(flag)), host_code, brick_code]
    sizes = [np.ones(len(flag)), *(np.bincount(code)[code].astype(float) for code in codes[1:])]
    # A level that pairs no two rows beyond those of the level before it says nothing.
    used = [0, *(i for i in (1, 2) if np.sum(sizes[i] - sizes[i - 1]) > 0)]
    inside = [np.bincount(cell, weights=size) for size in sizes]

    def trace(i, j):
        cross = np.bincount(cell, weights=sizes[i] * sizes[j])
        return np.sum(mean * (1.0 - mean) * (inside[min(i, j)] - 2.0 * cross / n + inside[i] * inside[j] / n**2))

    square = [np.sum(np.bincount(codes[i], weights=flag - mean[cell]) ** 2) for i in used]
    part = np.zeros(3)
    part[used] = np.linalg.lstsq([[trace(i, j) for j in used] for i in used], square, rcond=1e-9)[0]
    if part.sum() <= 0:
        return 0.0, 0.0
    rho_h, rho_b = np.clip(np.array([part[1:].sum(), part[2]]) / part.sum(), 0.0, 1.0)
    return float(max(rho_h, rho_b)), float(rho_b)


def mean_cluster_size(groups):
    """Return m = sum m_i^2 / sum m_i, the size of the cluster in which an average row lies."""
    sizes = np.bincount(encode_groups(groups)).astype(float)
    return float(np.sum(sizes**2) / np.sum(sizes)) if sizes.size else 0.0


def effective_n(host, brick, rho_h, rho_b):
    """Number of independent trials that n correlated ones are worth (float).

    n / (1 + (m_h - 1) rho_h + (m_b - m_h) rho_b), with m of `mean_cluster_size` over `host` and `brick`, each of shape
    (n,), and the correlations of `pair_correlation`.
    """
    n = len(np.asarray(host))
    if n == 0:
        return 0.0
    m_h, m_b = mean_cluster_size(host), mean_cluster_size(brick)
    return float(n / (1.0 + (m_h - 1.0) * rho_h + max(m_b - m_h, 0.0) * rho_b))


def draw_multiplicities(groups, n, rng, chunk=64):
    """Yield the row multiplicities of `n` bootstrap resamples, groups drawn with replacement.

    `groups` is the group of each row, shape (N,), or the number of rows when each is its own group. Each item is an
    ndarray of shape (<= chunk, N), float32.
    """
    code = np.arange(groups) if isinstance(groups, (int, np.integer)) else encode_groups(groups)
    n_groups = int(code.max(initial=-1)) + 1
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        drawn = rng.integers(0, n_groups, size=(size, n_groups)) + n_groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        yield counts[:, code].astype(np.float32)


def cluster_bootstrap(values, groups, n, rng, weights=None):
    """Bootstrap over groups (N,) of a weighted mean of values (N,), or of any statistic of row multiplicities.

    `values` may be ``function(multiplicities (B, N)) -> (B,) or (B, ...)``; `weights` (N,) go with array values only.
    Returns an ndarray of shape (n, ...).
    """
    if callable(values):
        return np.concatenate([np.asarray(values(m)) for m in draw_multiplicities(groups, n, rng)])
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    code = encode_groups(groups)
    top = np.bincount(code, weights=weights * values)
    bottom = np.bincount(code, weights=weights)
    draws = [(m @ top) / (m @ bottom) for m in draw_multiplicities(len(top), n, rng, chunk=256)]
    return np.concatenate(draws)


def summarise_draws(draws, level=0.95):
    """Return the equal-tailed interval (lower, upper) of draws along axis 0, NaN draws left out."""
    draws = np.asarray(draws, dtype=float)
    if draws.size == 0 or np.all(np.isnan(draws)):
        empty = np.full(draws.shape[1:], np.nan)[()]
        return empty, empty
    tail = 0.5 * (1.0 - level)
    lower, upper = np.nanquantile(draws, [tail, 1.0 - tail], axis=0)
    return lower, upper


class Ranking:
    """Scores sorted once, so that metrics of many bootstrap resamples are cumulative sums.

    Parameters
    ----------
    score : array_like of shape (N,)
    label : array_like of shape (N,), 0 or 1
    weights : array_like of shape (N,), optional

    Notes
    -----
    Ties share their rank: all rows of one score enter together.
    """

    def __init__(self, score, label, weights=None):
        score, label = np.asarray(score, dtype=float), np.asarray(label).astype(bool)
        if len(score) != len(label):
            raise ValueError(f"{len(score)} scores for {len(label)} labels")
        if np.isnan(score).any():
            raise ValueError("NaN among the scores")
        self.order = np.argsort(-score, kind="stable")
        ranked = score[self.order]
        self.label = label[self.order]
        self.weights = (np.ones(len(score)) if weights is None else np.asarray(weights, float))[self.order]
        self.last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(score) else np.zeros(0, int)
        self.n_positive, self.n_negative = int(self.label.sum()), int((~self.label).sum())

    def curves(self, multiplicity=None):
        """Weighted true and false positives above each distinct score, with a leading 0; each (B, D + 1)."""
        weights = self.weights[None]
        if multiplicity is not None:
            weights = weights * np.atleast_2d(multiplicity)[:, self.order]
        tp = np.cumsum(weights * self.label, axis=1)[:, self.last]
        fp = np.cumsum(weights * ~self.label, axis=1)[:, self.last]
        pad = ((0, 0), (1, 0))
        return np.pad(tp, pad), np.pad(fp, pad)

    def auc(self, multiplicity=None):
        """Area under the ROC curve of each resample, NaN where a class is missing; shape (B,)."""
        tp, fp = self.curves(multiplicity)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = np.sum(np.diff(fp, axis=1) * 0.5 * (tp[:, 1:] + tp[:, :-1]), axis=1)
            return area / (tp[:, -1] * fp[:, -1])

    def average_precision(self, multiplicity=None):
        """Average precision sum (R_i - R_(i-1)) P_i of each resample; shape (B,)."""
        tp, fp = self.curves(multiplicity)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.nan_to_num(tp[:, 1:] / (tp[:, 1:] + fp[:, 1:]))
            return np.sum(np.diff(tp, axis=1) * precision, axis=1) / tp[:, -1]

    def tpr_at_false_positives(self, allowed, multiplicity=None):
        """Largest true-positive rate with at most `allowed` (weighted) false positives; shape (B,)."""
        tp, fp = self.curves(multiplicity)
        return self._best(tp, fp <= allowed + 1e-9)

    def tpr_at_fpr(self, fpr, multiplicity=None):
        """Largest true-positive rate whose false-positive rate does not exceed `fpr`; shape (B,)."""
        tp, fp = self.curves(multiplicity)
        return self._best(tp, fp <= fpr * fp[:, -1:] * (1 + 1e-9))

    @staticmethod
    def _best(tp, allowed):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(allowed, tp, 0.0).max(axis=1) / tp[:, -1]


def tpr_at_fpr(score, label, fpr, weights=None):
    """Largest true-positive rate at a false-positive rate of at most `fpr` (float)."""
    return float(Ranking(score, label, weights).tpr_at_fpr(fpr)[0])


def tpr_at_count(score, label, n_false):
    """Recall with at most `n_false` false positives: TPR0 and TPR10 of Metcalf et al. 2019, A&A 625, A119."""
    return float(Ranking(score, label).tpr_at_false_positives(n_false)[0])


def place_scores(label, score):
    """Return the AUC and the DeLong placements of positives (m,) and negatives (n,), by mid-ranks (Sun & Xu 2014)."""
    label, score = np.asarray(label).astype(bool), np.asarray(score, dtype=float)
    m, n = int(label.sum()), int((~label).sum())
    if min(m, n) < MIN_DELONG:
        raise ValueError("the DeLong variance needs two objects of each class")
    rank = stats.rankdata(score)
    v10 = (rank[label] - stats.rankdata(score[label])) / n
    v01 = 1.0 - (rank[~label] - stats.rankdata(score[~label])) / m
    return float(v10.mean()), v10, v01


def auc_interval(label, score, level=0.95):
    """AUC with the DeLong interval taken on the logit of the AUC; returns auc, lower, upper (floats)."""
    auc, v10, v01 = place_scores(label, score)
    sigma = np.sqrt(np.var(v10, ddof=1) / len(v10) + np.var(v01, ddof=1) / len(v01))
    inner = np.clip(auc, 1e-6, 1 - 1e-6)
    half = stats.norm.ppf(0.5 + 0.5 * level) * sigma / (inner * (1 - inner))
    return auc, float(special.expit(special.logit(inner) - half)), float(special.expit(special.logit(inner) + half))


def delong_test(label, score_a, score_b):
    """Compare two AUCs on the same objects (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837).

    Parameters
    ----------
    label, score_a, score_b : array_like of shape (N,)

    Returns
    -------
    dict
        ``auc_a``, ``auc_b``, ``difference``, ``sigma``, ``z``, ``p`` (two-sided).
    """
    auc_a, a10, a01 = place_scores(label, score_a)
    auc_b, b10, b01 = place_scores(label, score_b)
    variance = np.var(a10 - b10, ddof=1) / len(a10) + np.var(a01 - b01, ddof=1) / len(a01)
    difference, sigma = auc_a - auc_b, float(np.sqrt(variance))
    z = difference / sigma if sigma > 0 else 0.0
    return {"auc_a": auc_a, "auc_b": auc_b, "difference": float(difference), "sigma": sigma,
            "z": float(z), "p": float(2.0 * stats.norm.sf(abs(z)))}  # fmt: skip


def mcnemar_test(flag_a, flag_b):
    """Exact McNemar test of two flags on the same objects.

    Returns
    -------
    dict
        ``only_a``, ``only_b`` (discordant counts) and the two-sided binomial ``p``.
    """
    flag_a, flag_b = np.asarray(flag_a, bool), np.asarray(flag_b, bool)
    only_a, only_b = int(np.sum(flag_a & ~flag_b)), int(np.sum(~flag_a & flag_b))
    n = only_a + only_b
    p = stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def expected_calibration_error(score, label, n_bins=15, weights=None):
    """Expected and maximum calibration error over equal-frequency bins.

    Parameters
    ----------
    score : array_like of shape (N,), probabilities
    label : array_like of shape (N,)
    n_bins : int
    weights : array_like of shape (N,), optional

    Returns
    -------
    dict
        ``ece``, ``mce`` (NaN when refused), ``reason`` (empty when computed) and ``bins``: one dict per bin with
        ``lower``, ``upper`` (score range), ``n``, ``n_positive``, ``mean_score``, ``fraction``, ``fraction_lower``,
        ``fraction_upper`` (95 % Jeffreys).

    Notes
    -----
    Equal scores are not kept in one bin; rows are cut by rank. A single class is refused: its error is the mean score
    and says nothing about calibration.
    """
    score, label = np.asarray(score, dtype=float), np.asarray(label).astype(float)
    weights = np.ones(len(score)) if weights is None else np.asarray(weights, dtype=float)
    if len(np.unique(label)) < 2:
        return {"ece": np.nan, "mce": np.nan, "reason": "single class", "bins": []}
    if len(score) < n_bins:
        return {"ece": np.nan, "mce": np.nan, "reason": f"fewer than {n_bins} objects", "bins": []}
    order = np.argsort(score, kind="stable")
    bins, gaps, masses = [], [], []
    for rows in np.array_split(order, n_bins):
        described = summarise_bin(score[rows], label[rows], weights[rows])
        bins.append(described)
        gaps.append(abs(described["fraction"] - described["mean_score"]))
        masses.append(weights[rows].sum())
    return {"ece": float(np.average(gaps, weights=masses)), "mce": float(np.max(gaps)), "reason": "", "bins": bins}


def summarise_bin(score, label, weights):
    """Return mean score and positive fraction with its 95 % Jeffreys interval (at the Kish size) of one bin."""
    fraction = float(np.average(label, weights=weights))
    size = kish_n_eff(weights)
    lower, upper = jeffreys_interval(fraction * size, size)
    return {"lower": float(score.min()), "upper": float(score.max()), "n": int(len(score)),
            "n_positive": int(label.sum()), "mean_score": float(np.average(score, weights=weights)),
            "fraction": fraction, "fraction_lower": float(lower), "fraction_upper": float(upper)}  # fmt: skip


def ks_distance(a, b):
    """Two-sample Kolmogorov-Smirnov distance D and its p value (floats)."""
    result = stats.ks_2samp(np.asarray(a, float), np.asarray(b, float))
    return float(result.statistic), float(result.pvalue)
