"""The catalogue's selection comes back from blind measurements; scores and test lenses are refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from lensaudit.artifacts import UserError
from lensaudit.audit import unfolding
from lensaudit.config import load_config

CONFIG = load_config("smoke")


def draw_arcs(n, seed, selected=False):
    """Arcs with a steep distribution of true S/N and poor measurements of it; `selected`: as a catalogue holds them."""
    rng = np.random.default_rng(seed)
    snr, theta = 5.0 * rng.pareto(1.2, n * 20) + 5.0, rng.uniform(0.5, 2.5, n * 20)
    psfsize = rng.uniform(0.9, 1.7, n * 20)
    keep = np.ones(len(snr), dtype=bool)
    if selected:
        chance = expit(3.0 * np.log(snr / 30.0)) * expit(4.0 * (theta / psfsize - 0.9))
        keep = rng.random(len(snr)) < chance
    snr, theta, psfsize = snr[keep][:n], theta[keep][:n], psfsize[keep][:n]
    n = len(snr)
    return pd.DataFrame({
        "arc_snr_true": snr, "theta_E": theta, "psfsize_r": psfsize, "depth_r": rng.normal(24.5, 0.4, n),
        "mag_host": rng.normal(18.5, 0.7, n),
        "arc_energy": 0.7 * snr * rng.lognormal(0.0, 0.5, n) + rng.normal(0, 2, n),
        "arc_snr": 0.2 * snr * rng.lognormal(0.0, 0.6, n) + rng.normal(0, 2, n),
        "arc_radius": np.where(rng.random(n) < 0.2, np.nan, theta + rng.normal(0, 0.3, n)),
        "galaxy_id": [f"g{i}" for i in range(n)], "split": "train",
    })  # fmt: skip


@pytest.fixture(scope="module")
def populations():
    return draw_arcs(12000, 1), draw_arcs(900, 2, selected=True)


def test_selection_comes_back(populations):
    injections, lenses = populations
    found = unfolding.unfold_selection(injections, lenses, CONFIG)
    weight = unfolding.weigh_selection(injections, found["log_weights"])
    edges = [5, 15, 30, 60, np.inf]
    true = np.histogram(draw_arcs(20000, 3, selected=True)["arc_snr_true"], edges)[0] / 20000
    draws = np.stack([
        np.histogram(injections["arc_snr_true"], edges, weights=w)[0] / w.sum()
        for w in (unfolding.weigh_selection(injections, d) for d in found["draws"])
    ])  # fmt: skip
    got = np.histogram(injections["arc_snr_true"], edges, weights=weight)[0] / weight.sum()
    raw = np.histogram(injections["arc_snr_true"], edges)[0] / len(injections)
    assert np.abs(got - true).max() < 0.06  # the catalogue's share of each bin, within the bootstrap's few per cent
    assert (np.abs(got - true) < 3.5 * draws.std(axis=0) + 0.03).all()
    assert np.abs(raw - true).max() > 0.3  # the prior alone is far from it


def test_recall_of_the_selected_is_predicted(populations):
    injections, lenses = populations
    found = unfolding.unfold_selection(injections, lenses, CONFIG)
    weight = unfolding.weigh_selection(injections, found["log_weights"])
    recover = lambda t: expit(2.5 * np.log(t["arc_snr_true"] / 35.0))  # noqa: E731
    own = draw_arcs(20000, 4, selected=True)
    predicted = np.average(recover(injections), weights=weight)
    assert abs(predicted - recover(own).mean()) < 0.04
    assert recover(own).mean() - recover(injections).mean() > 0.2


def test_unselected_lenses_leave_the_prior(populations):
    injections, _ = populations
    found = unfolding.unfold_selection(injections, draw_arcs(1500, 5), CONFIG)
    weight = unfolding.weigh_selection(injections, found["log_weights"])
    bright = (injections["arc_snr_true"] > 30).to_numpy()
    assert abs(np.average(bright, weights=weight) - bright.mean()) < 0.03


def test_uneven_draws_change_nothing(populations):
    injections, lenses = populations
    keep = np.random.default_rng(6).random(len(injections)) < np.minimum(1.0, injections["arc_snr_true"] / 25.0)
    thinned = injections[keep].assign(weight=1.0 / np.minimum(1.0, injections["arc_snr_true"] / 25.0))
    shares = []
    for table in (injections, thinned):
        w = unfolding.weigh_selection(table, unfolding.unfold_selection(table, lenses, CONFIG)["log_weights"])
        shares.append(np.average(table["arc_snr_true"] > 30, weights=w))
    assert abs(shares[0] - shares[1]) < 0.04


def test_order_of_rows_changes_nothing(populations):
    injections, lenses = populations
    one = unfolding.unfold_selection(injections.head(3000), lenses.head(200), CONFIG)["log_weights"]
    two = unfolding.unfold_selection(injections.head(3000).sample(frac=1, random_state=1), lenses.head(200), CONFIG)
    np.testing.assert_allclose(one, two["log_weights"], atol=2e-2)


def test_a_set_with_too_few_usable_lenses_is_refused_with_its_reason_and_the_others_go_on(populations):
    injections, lenses = populations
    lenses = lenses.head(160).assign(tier="A")
    bright = lenses.assign(psfsize_r=30.0).head(30)  # measured, but no injection is like them
    far = injections.head(2000).assign(arc_snr=1e9, arc_energy=1e9, arc_radius=90.0 + np.arange(2000) / 100.0)
    found = unfolding.unfold_selections({"main": injections, "faint": far}, pd.concat([lenses, bright]), CONFIG)
    assert unfolding.is_known(found["main"]) and not unfolding.is_known(found["faint"])
    assert "needs 50" in found["faint"]["reason"] and "log_weights" not in found["faint"]
    assert unfolding.unfold_selections({"main": injections}, lenses.head(80), CONFIG) == {}
    assert not unfolding.is_known(None)


def test_draws_compared_with_the_best_fit_give_their_weights(populations):
    injections, lenses = populations
    found = unfolding.unfold_selection(injections, lenses, CONFIG)
    bins, ratios = unfolding.compare_draws(injections, found)
    best = unfolding.weigh_selection(injections, found["log_weights"])
    for number in (0, 7):
        weight = best * ratios[number][bins]
        expected = unfolding.weigh_selection(injections, found["draws"][number])
        np.testing.assert_allclose(weight / weight.mean(), expected, rtol=1e-9)


@pytest.mark.parametrize("spoil, word", [
    (lambda i, s: (i.assign(logit=0.0), s), "score"),
    (lambda i, s: (i, s.assign(logit_companion=0.0)), "score"),
    (lambda i, s: (i, s.assign(split=["test"] + ["train"] * (len(s) - 1))), "test lens"),
    (lambda i, s: (i.drop(columns="arc_energy"), s), "arc_energy"),
    (lambda i, s: (i, s.head(10)), "needs 50"),
])  # fmt: skip
def test_bad_input_is_refused(populations, spoil, word):
    with pytest.raises(UserError, match=word):
        unfolding.unfold_selection(*spoil(*populations), CONFIG)
