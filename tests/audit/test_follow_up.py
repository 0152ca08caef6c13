"""Follow-up goes to doubtful candidates of rarely found kinds; what it rests on is checked against closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import expon, norm

from lensaudit.artifacts import UserError
from lensaudit.audit import follow_up
from lensaudit.audit.prevalence import compute_purity

PREVALENCE = 1e-3


def make_scored(n_lenses=4000, n_galaxies=100_000, seed=0, lens=1.0, galaxy=0.5, inclusion=0.5):
    """Scores above zero that fall exponentially, lenses with scale `lens`, galaxies with scale `galaxy`."""
    draws = np.random.default_rng(seed)
    logit = np.concatenate([draws.exponential(lens, n_lenses), draws.exponential(galaxy, n_galaxies)])
    is_lens = np.arange(n_lenses + n_galaxies) < n_lenses
    return pd.DataFrame({"galaxy_id": np.arange(len(logit)).astype(str), "label": is_lens.astype(int),
                         "tier": np.where(is_lens, "A", "N1"), "pool": np.where(is_lens, "", "N1"),
                         "inclusion_probability": np.where(is_lens, np.nan, inclusion), "logit": logit})  # fmt: skip


def test_purity_is_bayes_rule_where_the_densities_are_known():
    at = np.linspace(1.0, 4.0, 7)
    out = follow_up.infer_purity(make_scored(), at, 1.0, PREVALENCE)
    lens, galaxy = PREVALENCE * expon.pdf(at, scale=1.0), (1 - PREVALENCE) * expon.pdf(at, scale=0.5)
    assert np.log(out / (1 - out)) == pytest.approx(np.log(lens / galaxy), abs=0.15)


def test_purity_holds_for_normal_scores_of_one_width():
    """The log ratio of two normal densities of one width is linear: (x - (a + b)/2) (a - b) / s^2."""
    draws = np.random.default_rng(1)
    scored = make_scored(8000, 200_000).assign(
        logit=np.concatenate([draws.normal(1.0, 1, 8000), draws.normal(-1.0, 1, 200_000)]))  # fmt: skip
    at = np.array([0.6, 1.0, 2.0])
    out = follow_up.infer_purity(scored, at, 0.5, PREVALENCE)
    true = compute_purity(PREVALENCE, norm.pdf(at, 1), norm.pdf(at, -1))
    assert np.log(out / true) == pytest.approx(0.0, abs=0.15)


def test_purity_of_the_selected_is_that_of_the_rates():
    """Averaged over what a survey would select, P(lens | score) gives back p t / (p t + (1 - p) f)."""
    scored = make_scored(seed=2)
    above = scored[scored["logit"] > 1.0]
    purity = follow_up.infer_purity(scored, above["logit"], 1.0, PREVALENCE)
    is_lens = (above["label"] == 1).to_numpy()
    weight = np.where(is_lens, PREVALENCE / 4000, (1 - PREVALENCE) / 100_000)
    expected = compute_purity(PREVALENCE, np.exp(-1), np.exp(-2))
    assert np.average(purity, weights=weight) == pytest.approx(expected, rel=0.05)


def test_galaxies_count_with_their_inclusion():
    """Halving the kept share of the high-scoring galaxies changes nothing once each counts twice."""
    scored = make_scored(seed=3, inclusion=1.0)
    rows = np.arange(len(scored))
    thin = (scored["label"] == 0) & (scored["logit"] > 2)
    kept = scored.assign(inclusion_probability=np.where(thin, 0.5, scored["inclusion_probability"]))
    kept = kept[~thin | (rows % 2 == 0)]
    one, other = (follow_up.infer_purity(t, [2.0, 3.0], 1.0, PREVALENCE) for t in (scored, kept))
    assert np.log(one / other) == pytest.approx(0.0, abs=0.1)


def test_scores_that_hardly_a_galaxy_reaches_are_not_called_pure():
    """With 2000 galaxies the tenth highest score is about 2.6: beyond it P stays where ten galaxies still bound it."""
    scored = make_scored(400, 2000, seed=6)
    out = follow_up.infer_purity(scored, [2.0, 3.5, 9.0], 1.0, PREVALENCE)
    assert out[0] < out[1] == out[2]
    # Of the lenses exp(-2.6) lie beyond, of the galaxies ten.
    assert out[2] == pytest.approx(compute_purity(PREVALENCE, np.exp(-2.65), 10 / 2000), rel=0.5)


def test_few_objects_give_one_purity_and_no_class_is_an_error():
    few = make_scored(30, 2000, seed=4)
    few = few[(few["logit"] < 2) | (few["label"] == 1)]
    out = follow_up.infer_purity(few, [3.0, 5.0], 2.5, PREVALENCE)  # no galaxy lies above
    assert out[0] == out[1] and 0 < out[0] < 1
    with pytest.raises(UserError, match="N1"):
        follow_up.infer_purity(few[few["label"] == 1], [3.0], 2.5, PREVALENCE)


def test_a_sample_without_candidates_has_an_empty_order():
    test = make_scored(5, 5)
    out = follow_up.measure_candidates(test, 99.0, None, None)
    purity = follow_up.infer_purity(test, out["logit"], 99.0, PREVALENCE)
    radius, _ = follow_up.convert_radius(out["arc_radius"], pd.DataFrame({"theta_E": [], "arc_radius": []}))
    probability = pd.DataFrame({"p": radius, "n_eff": radius, "in_support": np.zeros(0, dtype=bool)})
    assert len(follow_up.rank_follow_up(out, probability, purity)) == 0


def test_radius_follows_the_found_injections():
    draws = np.random.default_rng(5)
    radius = draws.uniform(1.0, 3.0, 4000)
    theta = 0.6 * radius**1.2 * np.exp(draws.normal(0, 0.2, 4000))
    table = pd.DataFrame({"theta_E": theta, "arc_radius": np.where(np.arange(4000) % 9, radius, np.nan)})
    out, scatter = follow_up.convert_radius([1.0, 2.0, np.nan], table)
    assert out[:2] == pytest.approx([0.6, 0.6 * 2**1.2], rel=0.03) and np.isnan(out[2])
    assert scatter == pytest.approx(0.2, rel=0.1)
    none, scatter = follow_up.convert_radius([1.0], table[:5])
    assert np.isnan(none).all() and np.isnan(scatter)


def test_follow_up_goes_to_doubtful_candidates_of_rarely_found_kinds():
    table = pd.DataFrame({"galaxy_id": list("abcde")})
    probability = pd.DataFrame({"p": [0.5, 0.5, 0.05, 0.5, np.nan], "n_eff": 1e5, "in_support": [True] * 4 + [False]})
    out = follow_up.rank_follow_up(table, probability, [0.5, 1.0, 0.5, 0.9, 0.99])
    assert list(out["galaxy_id"]) == ["c", "a", "d", "b", "e"] and list(out["rank"]) == [1, 2, 3, 4, 5]
    assert out["priority"].iloc[0] == pytest.approx(0.5 / 0.05, rel=1e-3) and np.isnan(out["p"].iloc[-1])
    with pytest.raises(UserError, match="purity of b"):
        follow_up.rank_follow_up(table[:2], probability[:2], [0.1, np.nan])


def test_few_galaxies_give_no_slope_and_no_score_counts_against_a_candidate():
    scored = make_scored(300, 5000, seed=4)
    galaxy = np.sort(scored.loc[scored["label"] == 0, "logit"].to_numpy())
    for n, flat in ((10, True), (29, True), (40, False)):  # galaxies above the threshold
        out = follow_up.infer_purity(scored, np.linspace(galaxy[-n - 1], galaxy[-10], 5), galaxy[-n - 1], PREVALENCE)
        assert np.isfinite(out).all() and (np.ptp(out) == 0) == flat and (np.diff(out) >= 0).all()
    reverse = scored.assign(logit=np.where(scored["label"] == 1, scored["logit"] * 0.3, scored["logit"]))
    out = follow_up.infer_purity(reverse, np.linspace(0.5, 3.0, 6), 0.4, PREVALENCE)
    assert (np.diff(out) >= 0).all()


def test_one_radius_gives_no_relation():
    same = pd.DataFrame({"theta_E": np.linspace(0.8, 1.5, 20), "arc_radius": 1.5})
    assert np.isnan(follow_up.convert_radius([1.5], same)[0]).all()
