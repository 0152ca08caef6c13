"""The threshold's error in completeness, against closed forms and against simulated truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit import completeness, error_terms
from lensaudit.audit.sufficiency import add_intervals
from lensaudit.audit.thresholds import draw_thresholds
from lensaudit.config import load_config
from lensaudit.rng import make_stream

CONFIG = load_config("demo")
GRID = {"theta_E": (1.0, 1.5), "seeing": (1.0, 1.2), "depth": (23.0, 24.0)}
FPR, SHIFT = 1e-2, 2.0
TRUE_CUT = sps.norm.isf(FPR)


def make_cell(logit, theta_E=1.0):
    """One cell's injections, every one in a host of its own."""
    n = len(logit)
    return pd.DataFrame({"injection_id": np.arange(n), "theta_E": theta_E, "psfsize_r": 1.0, "depth_r": 23.0,
                         "host_index": np.arange(n), "brickname": (np.arange(n) % 50).astype(str), "logit": logit,
                         "footprint_weight": 1.0, "untied": False})  # fmt: skip


def make_hosts(table):
    return table[["psfsize_r", "depth_r", "footprint_weight"]].assign(deflector_weight=1.0, deployment_weight=1.0)


def draw_cuts(seed, n=2000, n_draws=200):
    """Threshold of `n` negatives of one score in FPR, and its resamples."""
    values = make_stream(seed, "test/negatives").normal(size=n)
    draws = draw_thresholds(values, np.ones(n), np.arange(n), [FPR], n_draws, make_stream(seed, "test/draws"))[:, 0]
    return stats.weighted_quantile(values, 1.0 - FPR), draws


def test_counts_at_drawn_thresholds_are_plain_counts():
    generator = np.random.default_rng(1)
    number, logit = generator.integers(0, 5, 400), generator.normal(size=400).round(1)
    draws = np.append(generator.normal(size=30).round(1), [9.0, -9.0])
    expected = [[np.sum(logit[number == cell] > cut) for cell in range(5)] for cut in draws]
    assert np.array_equal(error_terms.count_draws(number, logit, draws, 5), expected)


def test_sigma_is_the_scores_density_times_the_thresholds_error():
    cut, draws = draw_cuts(2, n=20000, n_draws=1000)
    table = make_cell(sps.norm.ppf((np.arange(4000) + 0.5) / 4000) + SHIFT)
    cells = completeness.count_cells(table, GRID, {"t": cut}, CONFIG, make_hosts(table), draws={"t": draws})
    expected = sps.norm.pdf(TRUE_CUT - SHIFT) * np.sqrt(FPR * (1 - FPR) / 20000) / sps.norm.pdf(TRUE_CUT)
    assert cells["sigma_threshold"][0] == pytest.approx(expected, rel=0.15)
    assert cells["sigma_threshold"][1:].isna().all() and (cells["upper_total"][1:] == 1.0).all()


def test_total_bounds_cover_the_completeness_at_the_stated_rate():
    """2000 negatives and 800 injections: counting bounds alone hold far less than they say."""
    truth, plain, total = sps.norm.sf(TRUE_CUT - SHIFT), [], []
    for seed in range(100):
        cut, draws = draw_cuts(seed)
        logit = make_stream(seed, "test/injections").normal(size=800) + SHIFT
        part = add_intervals(pd.DataFrame({"n": [800], "k": np.sum(logit > cut), "n_eff": 800.0, "reason": ""}), CONFIG)
        values = error_terms.count_draws(np.zeros(800, dtype=int), logit, draws, 1) / 800
        row = error_terms.add_threshold_error(part, values, {0.68: "_68", 0.95: "_95"}).iloc[0]
        plain.append([row[f"lower_{x}"] <= truth <= row[f"upper_{x}"] for x in ("68", "95")])
        total.append([row[f"lower{x}_total"] <= truth <= row[f"upper{x}_total"] for x in ("_68", "")])
    assert np.all(np.abs(np.mean(total, axis=0) - [0.68, 0.95]) < [0.10, 0.045])
    assert np.all(np.mean(plain, axis=0) < [0.56, 0.90])


def test_one_threshold_moves_all_cells_of_an_average():
    """Two cells alike: the average keeps their threshold error whole, while counting shrinks."""
    cut, draws = draw_cuts(3)
    logit = make_stream(3, "test/injections").normal(size=1000) + SHIFT
    table = pd.concat([make_cell(logit), make_cell(logit, 1.5)], ignore_index=True)
    cells = completeness.count_cells(table, GRID, {"t": cut}, CONFIG, make_hosts(table), draws={"t": draws})
    row = completeness.average_cells(cells, (), table, GRID, {"t": cut}, CONFIG, "flat", {"t": draws}).iloc[0]
    assert row["sigma_threshold"] == pytest.approx(cells["sigma_threshold"][0])
    assert row["lower_total"] < row["lower"] and row["upper_total"] > row["upper"]
    bare = completeness.average_cells(cells, (), table, GRID, {"t": cut}, CONFIG, "flat").iloc[0]
    assert bare[["completeness", "lower", "upper"]].equals(row[["completeness", "lower", "upper"]])


def test_a_fixed_threshold_adds_nothing_and_missing_draws_are_refused():
    table = make_cell(make_stream(4, "test/injections").normal(size=300))
    cells = completeness.count_cells(table, GRID, {"s": 0.0}, CONFIG, make_hosts(table), draws={"s": np.zeros(10)})
    assert cells["sigma_threshold"][0] < 1e-12
    for counting, total in (("lower_95", "lower_total"), ("upper_68", "upper_68_total")):
        assert np.allclose(cells[counting], cells[total], rtol=0, atol=1e-15)
    for draws, text in (({"other": [0.0]}, "for s; those given are for other"), ({"s": [np.nan]}, "not finite")):
        with pytest.raises(UserError, match=text):
            completeness.count_cells(table, GRID, {"s": 0.0}, CONFIG, make_hosts(table), draws=draws)
