"""The models of recovery against scikit-learn, and their quick refits against fits from scratch."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lensaudit import rng
from lensaudit.artifacts import UserError
from lensaudit.audit import recovery
from lensaudit.config import load_config

CONFIG = load_config("smoke")


def draw_table(n, seed):
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({name: generator.normal(size=n) for name in recovery.COVARIATES}).assign(
        arc_snr=np.exp(generator.normal(2, 0.8, n)), host_index=generator.integers(0, n // 4, n),
        injection_id=np.arange(n), weight=generator.uniform(0.2, 3.0, n))  # fmt: skip
    table.loc[generator.random(n) < 0.15, "arc_g_r"] = np.nan
    logit = table["theta_E"] + np.log(table["arc_snr"]) - 2.5 + 0.5 * table["theta_E"] * table["depth_r"]
    return table.assign(brickname=(table["host_index"] // 5).astype(str), found=generator.random(n) < expit(logit))


@pytest.fixture(scope="module")
def table():
    return draw_table(2500, 0)


@pytest.fixture(scope="module")
def queries():
    return draw_table(60, 1)


def fit(table, choice, weights=None, flag=None):
    scaler = recovery.fit_scaler(table)
    flag = table["found"] if flag is None else flag
    return recovery.fit_model(choice, table, flag, scaler, table["weight"] if weights is None else weights)


@pytest.mark.parametrize("strength", [0.3, 30.0])
def test_the_climb_ends_where_scikit_learn_does(table, queries, strength):
    model = fit(table, ("spline", strength))
    other = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8, max_iter=300)
    other.fit(model.design[:, 1:], table["found"], sample_weight=model.weights)
    expected = other.predict_proba(model._expand(model.scaler.transform(queries))[:, 1:])[:, 1]
    np.testing.assert_allclose(model.predict(queries), expected, atol=2e-5)


@pytest.mark.parametrize("choice", [("kernel", 0.7), ("spline", 0.3), ("spline", 30.0)])
def test_other_weights_of_groups_give_what_a_fit_with_them_gives(table, queries, choice):
    generator = np.random.default_rng(2)
    group, ratios = generator.integers(0, 7, len(table)), np.exp(generator.normal(0, 1.0, (5, 7)))
    ratios[3, 2], ratios[4] = 0.0, np.exp(generator.normal(0, 3.0, 7))  # a group left out; weights far from the start
    model, scaler = fit(table, choice), recovery.fit_scaler(table)
    found = model.predict_under(queries, group, ratios)
    for number, ratio in enumerate(ratios):
        own = ratio[group] > 0
        weight = table["weight"].to_numpy() * ratio[group]
        direct = recovery.fit_model(choice, table, table["found"], scaler, table["weight"])
        if choice[0] == "spline":  # with the splines of all rows, as `refit` has them
            scaled = weight / weight[own].mean()
            theta = recovery.climb_likelihood(direct.design, direct.y, scaled, direct.penalty, 0.0 * direct.theta)
            expected = expit(direct._expand(scaler.transform(queries)) @ theta)
        else:
            expected = recovery.fit_model(choice, table, table["found"], scaler, weight).predict(queries)
        np.testing.assert_allclose(found[number], expected, atol=2e-4 if choice[0] == "spline" else 1e-5)
    same = model.predict_under(queries, group, np.ones((1, 7)))[0]
    np.testing.assert_allclose(same, model.predict(queries), atol=1e-5)


def test_a_group_of_one_class_gives_a_constant(table, queries):
    flag = table["found"] & (table["theta_E"] > 0)
    group = (table["theta_E"] > 0).astype(int).to_numpy()
    p = fit(table, ("spline", 3.0), flag=flag).predict_under(queries, group, np.array([[1.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(p[0], recovery.BOUNDS[0])
    assert p[1].std() > 0.1


def test_operating_points_chosen_together_are_as_chosen_alone(table):
    flags = {"all": table["found"], "bright": table["found"] & (table["arc_snr"] > 8)}
    both = recovery.choose_model(table, flags, CONFIG)
    for name, flag in flags.items():
        alone = recovery.choose_model(table, {name: flag}, CONFIG)[name]
        assert alone["kind"] == both[name]["kind"] and alone["parameter"] == both[name]["parameter"]
        for key, score in alone["scores"].items():
            assert score == pytest.approx(both[name]["scores"][key], abs=1e-5)


def test_held_out_scores_are_those_of_fits_without_the_fold(table):
    """The kernel's and the constant's log-scores, computed the long way round."""
    scores = recovery.choose_model(table, {"t": table["found"]}, CONFIG, (("kernel", 0.7),))["t"]["scores"]
    names = np.unique(table["brickname"])
    number = (rng.hash_order(CONFIG.seed, "audit/recovery/fold", names) * recovery.N_FOLDS).astype(int)
    fold, scaler = pd.Series(number, names).loc[table["brickname"]].to_numpy(), recovery.fit_scaler(table)
    p, constant = np.zeros(len(table)), np.zeros(len(table))
    for f in range(recovery.N_FOLDS):
        rest, own = table[fold != f], fold == f
        p[own] = recovery.KernelModel(rest, rest["found"], 0.7, scaler, rest["weight"]).predict(table[own])
        constant[own] = np.average(rest["found"], weights=rest["weight"])
    for key, value in (("kernel 0.7", p), ("constant 0", constant)):
        value = np.clip(value, *recovery.BOUNDS)
        log = np.where(table["found"], np.log(value), np.log1p(-value))
        assert scores[key] == pytest.approx(np.average(log, weights=table["weight"]), abs=2e-5)


def test_mixture_follows_the_shares(table):
    target = table.head(40)
    model = fit(table, ("kernel", 0.3))
    even, first = model.mix(target), model.mix(target, np.arange(40) == 0)
    assert even.sum() == pytest.approx(1.0, abs=1e-5) and (first @ table["theta_E"]) != (even @ table["theta_E"])
    np.testing.assert_allclose(first, model.weigh(target.head(1))[0] / model.weigh(target.head(1)).sum(), atol=1e-7)


def test_one_brick_cannot_be_held_out(table):
    with pytest.raises(UserError, match="1 brick"):
        recovery.choose_model(table.assign(brickname="0001m002"), {"t": table["found"]}, CONFIG)
