"""Selection applied to known parents: curves and quantiles against closed forms, parents back inside their bands."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm

from lensaudit.artifacts import UserError
from lensaudit.audit import selected
from lensaudit.config import load_config

CONFIG = load_config("smoke")
CUT = {"fpr_1e-2": 0.0}


def make_injections(n=20000, seed=0, copies=1):
    """x uniform in (0, 1), found with probability x; `copies` equal rows of each stand in one host and brick."""
    draws = np.random.default_rng(seed)
    x, found = draws.uniform(size=n), draws.uniform(size=n)
    brick = draws.integers(0, 400, n)
    table = pd.DataFrame({"theta_E": x, "source_n": 1.0, "q": draws.uniform(size=n), "host_index": np.arange(n),
                          "brickname": brick.astype(str), "logit": np.where(found < x, 1.0, -1.0)})  # fmt: skip
    return table.loc[np.repeat(table.index, copies)].reset_index(drop=True)


def test_curves_are_the_selection_applied():
    out = selected.trace_curves(make_injections(), CUT, n_bins=20)
    assert set(out["variable"]) == {"theta_E", "q"}  # a constant is no axis
    own = out[out["variable"] == "theta_E"]
    inside = (own["lower"] <= own["x"]) & (own["x"] <= own["upper"])  # the mean of x over a bin is its centre
    assert inside.mean() >= 0.85
    for column in ("parents", "selected"):
        assert np.sum(own[column] * (own["right"] - own["left"])) == pytest.approx(1.0)
    assert own["selected"].to_numpy() == pytest.approx(2 * own["x"].to_numpy(), abs=0.25)
    flat = out[out["variable"] == "q"]
    assert ((flat["lower"] <= 0.5) & (flat["upper"] >= 0.5)).mean() >= 0.85
    assert own["n"].sum() == 20000  # the smallest and the largest value are in a bin


def test_quantiles_of_the_selected_have_their_closed_form():
    out = selected.measure_quantiles(make_injections(), CUT, CONFIG)
    own = out[out["variable"] == "theta_E"].set_index(["sample", "share"])
    for share in (0.9, 0.5, 0.1):
        parents, chosen = own.loc[("parents", share)], own.loc[("fpr_1e-2", share)]
        assert parents["value"] == pytest.approx(1 - share, abs=0.015)
        # P(x >= v | selected) = 1 - v^2
        assert chosen["value"] == pytest.approx(np.sqrt(1 - share), abs=0.015)
        # Asymptotic error of a quantile: sqrt(s (1 - s) / n) / density, density 2 v.
        sigma = np.sqrt(share * (1 - share) / chosen["n"]) / (2 * np.sqrt(1 - share))
        assert (chosen["upper"] - chosen["lower"]) / (2 * norm.ppf(0.975) * sigma) == pytest.approx(1.0, abs=0.25)
    assert (own.loc["parents"]["shift"] == 0).all()


def test_shift_between_parents_and_selected_is_covered():
    inside = {"theta_E": [], "q": []}
    for seed in range(40):
        own = selected.measure_quantiles(make_injections(3000, seed), CUT, CONFIG)
        own = own[own["sample"] != "parents"]
        # q has no part in the selection: its shift is zero.
        true = np.where(own["variable"] == "q", 0.0, np.sqrt(1 - own["share"]) - (1 - own["share"]))
        covered = (own["shift_lower"] <= true) & (true <= own["shift_upper"])
        for name, part in covered.groupby(own["variable"]):
            inside[name] += list(part)
    # 120 intervals at 0.95, three standard errors of as many independent ones
    assert all(0.89 <= np.mean(part) for part in inside.values())


def test_copies_in_a_brick_do_not_narrow_the_interval():
    one, four = (selected.measure_quantiles(make_injections(3000, 1, copies), CUT, CONFIG) for copies in (1, 4))
    assert four["lower"].to_numpy() == pytest.approx(one["lower"].to_numpy(), abs=1e-6)
    assert four["upper"].to_numpy() == pytest.approx(one["upper"].to_numpy(), abs=1e-6)


def test_quantiles_without_any_selected_are_not_made_up():
    out = selected.measure_quantiles(make_injections(300), {"high": 9.0}, CONFIG)
    assert out.loc[out["sample"] == "high", ["value", "lower", "shift"]].isna().all(axis=None)


EDGES = np.linspace(0.5, 2.5, 6)


def apply_selection(seed, n=800, n_eff=400.0, factor=1.0):
    """Parents falling with radius; cells of C with a known error; `factor` makes C wrong."""
    draws = np.random.default_rng(seed)
    number = draws.poisson(n)
    theta = 0.5 + draws.triangular(0, 0, 2.0, number)
    p = expit(3 * (np.digitize(theta, EDGES) / 2.5 - 1.3))
    found = draws.uniform(size=number) < p
    cell = np.digitize(theta, EDGES) - 1
    true = np.array([expit(3 * ((i + 1) / 2.5 - 1.3)) for i in range(5)])
    measured = draws.binomial(int(n_eff), true) / n_eff * factor
    parents = pd.DataFrame({"theta_E": theta})
    probability = pd.DataFrame({"p": measured[cell], "n_eff": n_eff, "in_support": True})
    expected = n * np.diff(1 - (1 - (EDGES - 0.5) / 2) ** 2)
    return parents[found], probability[found], parents, expected


def test_parents_come_back_inside_their_bands():
    inside = {"lower_68": [], "lower": []}
    for seed in range(60):
        found, probability, parents, expected = apply_selection(seed)
        out = selected.correct_distribution(found, "theta_E", EDGES, probability, parents, seed=seed)
        assert out["n_true"].sum() == len(parents) and out["n_found"].sum() == len(found)
        for low, high in (("lower_68", "upper_68"), ("lower", "upper")):
            inside[low].append((out[low] <= expected) & (expected <= out[high]))
    # 300 bins each: 2.5 standard errors of the nominal share below it, and not absurdly wide.
    assert 0.61 <= np.mean(inside["lower_68"]) <= 0.80
    assert np.mean(inside["lower"]) >= 0.92


def test_a_wrong_selection_function_does_not_bring_the_parents_back():
    found, probability, parents, expected = apply_selection(3, n=4000, factor=0.6)
    out = selected.correct_distribution(found, "theta_E", EDGES, probability, parents)
    assert (out["lower"] > expected).sum() >= 3


def test_errors_of_one_model_move_together():
    found, probability, _, _ = apply_selection(4, n=700, n_eff=60.0)
    probability["p"] = np.clip(probability["p"] + np.linspace(0, 1e-6, len(probability)), 0, 1)  # all differ
    apart = selected.correct_distribution(found, "theta_E", [0.5, 2.5], probability)
    one = selected.correct_distribution(found, "theta_E", [0.5, 2.5], probability, correlated=True)
    assert (one["upper"] - one["lower"]).item() > 1.3 * (apart["upper"] - apart["lower"]).item()


def test_without_probability_only_the_observed_is_given():
    found, probability, _, _ = apply_selection(5)
    out = selected.correct_distribution(found, "theta_E", EDGES)
    assert list(out) == ["left", "right", "n_found"]
    probability = probability.assign(in_support=np.arange(len(found)) % 2 == 0)
    out = selected.correct_distribution(found, "theta_E", EDGES, probability)
    assert out["n_used"].sum() == (np.arange(len(found)) % 2 == 0).sum() < out["n_found"].sum()


def test_classes_guards_and_empty_bins():
    found = pd.DataFrame({"type": ["DEV"] * 40 + ["SER"]})
    probability = pd.DataFrame({"p": [0.5] * 40 + [0.01], "n_eff": 1e6, "in_support": True})
    out = selected.correct_distribution(found, "type", ["DEV", "SER", "EXP"], probability).set_index("name")
    assert out.loc["DEV", "corrected"] == pytest.approx(80, rel=1e-4)
    assert out.loc["SER", "corrected"] == pytest.approx(100, rel=1e-2)
    assert out.loc["EXP", "corrected"] == 0 and np.isnan(out.loc["EXP", "upper"])
    assert not out["guard_ok"].any() and out["max_weight"].iloc[0] == pytest.approx(100 / 180, rel=1e-2)


def test_quads_against_doubles():
    lenses = pd.DataFrame({"n_images": [2] * 60 + [3] * 20 + [4] * 15 + [5] * 5 + [1] * 7})
    out = selected.compare_images({"all": lenses, "found": lenses.assign(weight=2.0)}).set_index("sample")
    assert out.loc["all", "quad_fraction"] == 0.2 and out.loc["all", "quad_to_double"] == 0.25
    assert out.loc["all", "n"] == 100 and out.loc["found", "n_quad"] == 40
    assert out.loc["all", "lower"] == out.loc["found", "lower"]  # equal weights add no information
    # Jeffreys interval of 20 of 100 (Brown, Cai & DasGupta 2001, by the Beta quantiles of scipy)
    assert out.loc["all", ["lower", "upper"]].tolist() == pytest.approx([0.1309, 0.2862], abs=5e-4)


def test_follow_up_goes_to_doubtful_candidates_of_rarely_found_kinds():
    table = pd.DataFrame({"galaxy_id": list("abcde")})
    probability = pd.DataFrame({"p": [0.5, 0.5, 0.05, 0.5, np.nan], "n_eff": 1e5, "in_support": [True] * 4 + [False]})
    out = selected.rank_follow_up(table, probability, [0.5, 1.0, 0.5, 0.9, 0.99])
    assert list(out["galaxy_id"]) == ["c", "a", "d", "b", "e"] and list(out["rank"]) == [1, 2, 3, 4, 5]
    assert out["priority"].iloc[0] == pytest.approx(0.5 / 0.05, rel=1e-3) and np.isnan(out["p"].iloc[-1])


def test_bad_input_is_refused():
    found, probability, _, _ = apply_selection(6)
    with pytest.raises(UserError, match="no column radius"):
        selected.correct_distribution(found, "radius", EDGES, probability)
    with pytest.raises(UserError, match="give one for each"):
        selected.correct_distribution(found, "theta_E", EDGES, probability[1:])
    with pytest.raises(UserError, match="do not rise"):
        selected.correct_distribution(found, "theta_E", [1, 1], probability)
    with pytest.raises(UserError, match="varies"):
        selected.trace_curves(make_injections(100)[["source_n", "logit"]], CUT)
    with pytest.raises(UserError, match="no column n_images"):
        selected.compare_images({"all": found})
    with pytest.raises(UserError, match="purity of b"):
        selected.rank_follow_up(pd.DataFrame({"galaxy_id": ["a", "b"]}), probability[:2], [0.1, np.nan])
