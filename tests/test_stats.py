"""Intervals against published values and scipy, metrics against scikit-learn, clusters against planted correlation."""

import numpy as np
import pytest
from scipy import stats as sps
from sklearn import metrics

from lensaudit import stats
from lensaudit.rng import make_stream


def test_intervals_of_100_in_112():
    assert np.round(stats.wilson_interval(100, 112), 3).tolist() == [0.822, 0.938]
    assert np.round(stats.jeffreys_interval(100, 112), 3).tolist() == [0.826, 0.940]
    assert np.round(stats.clopper_pearson(100, 112), 3).tolist() == [0.820, 0.943]


@pytest.mark.parametrize("method", ["wilson", "exact"])
def test_intervals_agree_with_scipy(method):
    ours = {"wilson": stats.wilson_interval, "exact": stats.clopper_pearson}[method]
    for k, n in [(0, 7), (3, 7), (7, 7), (50, 1000)]:
        theirs = sps.binomtest(k, n).proportion_ci(0.68, method=method)
        assert np.allclose(ours(k, n, 0.68), [theirs.low, theirs.high], atol=1e-9)


def test_jeffreys_is_vectorised_and_takes_effective_counts():
    lower, upper = stats.jeffreys_interval(np.array([0.0, 2.5, 9.75, 0.0]), np.array([3.0, 9.75, 9.75, 0.0]))
    assert lower[0] == 0 and upper[2] == 1 and (lower[3], upper[3]) == (0, 1)
    assert lower[1] == pytest.approx(sps.beta.ppf(0.025, 3.0, 7.75))
    with pytest.raises(ValueError):
        stats.jeffreys_interval(5, 4)


@pytest.mark.parametrize("level", [0.68, 0.95])
@pytest.mark.parametrize("n", [20, 23, 44, 100, 204])
def test_jeffreys_coverage(n, level):
    """Exact, from the binomial sum; Clopper-Pearson (scipy's, above) misses the goal of 2.5 points at the ends."""
    k, p = np.arange(n + 1), np.arange(0.0205, 0.98, 0.001)
    mass, cover = sps.binom.pmf(k, n, p[:, None]), {}
    for method in (stats.jeffreys_interval, stats.clopper_pearson):
        lower, upper = method(k, n, level)
        cover[method] = np.sum(mass * ((lower <= p[:, None]) & (p[:, None] <= upper)), axis=1)
    for low, high in ((0.02, 0.98), (0.02, 0.1), (0.1, 0.9), (0.9, 0.98)):
        inside = (p > low) & (p < high)
        assert abs(cover[stats.jeffreys_interval][inside].mean() - level) < 0.025
    assert cover[stats.clopper_pearson][p < 0.1].mean() > level + (0.07 if level == 0.68 else 0.015)


def test_weighted_quantile_repeats_rows():
    rng = make_stream(2, "quantile")
    values, counts = rng.normal(size=40), rng.integers(1, 5, 40)
    repeated = np.repeat(values, counts)
    for q in (0.1, 0.5, 0.9, 0.99):
        assert stats.weighted_quantile(values, q, counts) == np.quantile(repeated, q, method="inverted_cdf")
    # Above the 0.99 quantile of 1000 distinct values lie exactly ten.
    assert np.sum(np.arange(1000.0) > stats.weighted_quantile(np.arange(1000.0), 0.99)) == 10


def test_kish_and_groups():
    assert stats.kish_n_eff(np.ones(9)) == pytest.approx(9)
    assert stats.kish_n_eff([1, 1, 1, 1], ["a", "a", "b", "b"]) == pytest.approx(2)
    assert stats.kish_n_eff([1, 0, 0]) == pytest.approx(1)


def make_flags(rho_h, rho_b, seed, n_bricks=500, n_hosts=4, n_each=4, p=0.4):
    """Exchangeable flags: with probability rho the flag is copied from the brick's, the host's or drawn anew."""
    rng = make_stream(seed, "flags")
    shape = (n_bricks, n_hosts, n_each)
    common = rng.random(n_bricks)[:, None, None] < p
    own = rng.random((n_bricks, n_hosts, 1)) < p
    fresh = rng.random(shape) < p
    # Two flags of one host agree by chance rho_h when both copy the host's value, which itself copies the brick's.
    use_brick = rng.random((n_bricks, n_hosts, 1)) < np.sqrt(rho_b / rho_h)
    host_value = np.where(use_brick, common, own)
    flag = np.where(rng.random(shape) < np.sqrt(rho_h), host_value, fresh)
    brick = np.broadcast_to(np.arange(n_bricks)[:, None, None], shape).ravel()
    host = np.broadcast_to(np.arange(n_bricks * n_hosts).reshape(n_bricks, n_hosts, 1), shape).ravel()
    return flag.ravel(), host, brick


def test_pair_correlation_recovers_the_planted_values():
    flag, host, brick = make_flags(0.35, 0.10, 3)
    rho_h, rho_b = stats.pair_correlation(flag, host, brick)
    assert rho_h == pytest.approx(0.35, abs=0.04) and rho_b == pytest.approx(0.10, abs=0.03)
    independent = make_stream(4, "flags").random(len(flag)) < 0.4
    assert max(stats.pair_correlation(independent, host, brick)) < 0.03
    assert stats.pair_correlation([True, False], [1, 2], [1, 2]) == (0.0, 0.0)
    assert stats.pair_correlation([], [], []) == (0.0, 0.0)


def test_pair_correlation_in_small_cells_is_not_lowered_by_their_own_means():
    """300 cells of five bricks each: residuals about a cell's mean alone would give 0.33 and 0.07."""
    parts = [make_flags(0.35, 0.10, seed, n_bricks=5, n_hosts=10, n_each=4) for seed in range(300)]
    flag, host, brick = (np.stack(column) for column in zip(*parts, strict=True))
    cell = np.arange(300)[:, None] + np.zeros_like(host)
    rho_h, rho_b = stats.pair_correlation(flag.ravel(), host.ravel(), brick.ravel(), cell.ravel())
    assert rho_h == pytest.approx(0.35, abs=0.012) and rho_b == pytest.approx(0.10, abs=0.015)
    residual = flag - flag.mean(axis=1, keepdims=True)
    totals = residual.reshape(300, 5, 40).sum(axis=2) ** 2 - (residual.reshape(300, 5, 10, 4).sum(axis=3) ** 2).sum(2)
    plain = totals.sum() / np.sum(5 * 40 * 36 * flag.mean(axis=1) * (1 - flag.mean(axis=1)))
    assert plain < 0.08


def test_effective_n_matches_the_scatter_of_means():
    # 200 injections at 4 per host are worth 98 at rho = 0.35, at 10 per host 48 (measured beforehand).
    assert stats.effective_n(np.arange(200) // 4, np.arange(200) // 4, 0.35, 0.0) == pytest.approx(97.6, abs=0.1)
    assert stats.effective_n(np.arange(200) // 10, np.arange(200) // 10, 0.35, 0.0) == pytest.approx(48.2, abs=0.1)
    means = []
    for seed in range(400):
        flag, host, brick = make_flags(0.35, 0.10, seed, n_bricks=10)
        means.append(flag.mean())
    expected = 0.4 * 0.6 / stats.effective_n(host, brick, 0.35, 0.10)
    assert np.var(means) == pytest.approx(expected, rel=0.3)


def test_cluster_bootstrap_sees_the_clusters():
    rng = make_stream(5, "cluster")
    values = np.repeat(rng.normal(size=100), 20)
    groups = np.repeat(np.arange(100), 20)
    clustered = stats.cluster_bootstrap(values, groups, 600, rng).std()
    single = stats.cluster_bootstrap(values, np.arange(2000), 600, rng).std()
    assert clustered == pytest.approx(0.1 * values.std() / 1.0, rel=0.2) and clustered > 3 * single
    generic = stats.cluster_bootstrap(lambda m: m @ values / m.sum(axis=1), groups, 600, rng).std()
    assert generic == pytest.approx(clustered, rel=0.15)


def test_ranking_agrees_with_scikit_learn():
    rng = make_stream(6, "ranking")
    label = rng.random(800) < 0.2
    score = np.round(rng.normal(size=800) + label, 1)  # with ties
    weights = rng.random(800) + 0.1
    ranking = stats.Ranking(score, label, weights)
    assert ranking.auc()[0] == pytest.approx(metrics.roc_auc_score(label, score, sample_weight=weights))
    expected = metrics.average_precision_score(label, score, sample_weight=weights)
    assert ranking.average_precision()[0] == pytest.approx(expected)
    multiplicity = rng.integers(0, 3, 800)
    repeated = metrics.roc_auc_score(np.repeat(label, multiplicity), np.repeat(score, multiplicity))
    assert stats.Ranking(score, label).auc(multiplicity)[0] == pytest.approx(repeated)


def test_tpr_at_counts_and_rates():
    score = np.array([9, 8, 7, 6, 5, 4, 3, 2.0])
    label = np.array([1, 1, 0, 1, 0, 1, 0, 0])
    assert stats.tpr_at_count(score, label, 0) == 0.5
    assert stats.tpr_at_count(score, label, 1) == 0.75
    assert stats.tpr_at_fpr(score, label, 0.25) == 0.75
    assert np.isnan(stats.Ranking(score, np.zeros(8)).auc()[0])


def test_delong_variance_matches_the_bootstrap():
    rng = make_stream(7, "delong")
    label = np.arange(600) < 200
    a = rng.normal(size=600) + label
    b = 0.7 * a + rng.normal(size=600) * 0.7 + 0.3 * label
    result = stats.delong_test(label, a, b)
    assert result["auc_a"] == pytest.approx(metrics.roc_auc_score(label, a))
    first, second = stats.Ranking(a, label), stats.Ranking(b, label)
    draws = stats.cluster_bootstrap(lambda m: first.auc(m) - second.auc(m), np.arange(600), 800, rng)
    assert result["sigma"] == pytest.approx(draws.std(), rel=0.15)
    assert stats.delong_test(label, a, a)["p"] == 1.0


def test_mcnemar_counts_discordant_pairs():
    result = stats.mcnemar_test([1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0])
    assert (result["only_a"], result["only_b"]) == (3, 1) and result["p"] == pytest.approx(0.625)


def test_calibration_error():
    rng = make_stream(8, "calibration")
    score = rng.random(30000)
    label = rng.random(30000) < score
    good = stats.expected_calibration_error(score, label)
    assert good["ece"] < 0.015 and len(good["bins"]) == 15 and {b["n"] for b in good["bins"]} == {2000}
    assert stats.expected_calibration_error(score**2, label)["mce"] > 0.15
    assert stats.expected_calibration_error(score, np.zeros(30000))["reason"] == "single class"
