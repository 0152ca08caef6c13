"""Cells, their intervals with reused hosts, and the two gates."""

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.audit import completeness, two_gates
from lensaudit.config import load_config

CONFIG = load_config("demo")
GRID = {"theta_E": (1.0, 1.5), "seeing": (1.0, 1.2), "depth": (23.0, 24.0)}


def make_table(n, p, seed=0, per_host=1, spread=0.0):
    """One cell's injections; the hosts' own recovery probabilities scatter by `spread`."""
    generator = np.random.default_rng(seed)
    host = np.arange(n) // per_host
    own = np.clip(p + spread * generator.choice([-1.0, 1.0], host.max() + 1), 0, 1)[host]
    return pd.DataFrame({
        "injection_id": np.arange(n), "theta_E": 1.0, "psfsize_r": 1.0, "depth_r": 23.0, "host_index": host,
        "brickname": (host % 20).astype(str), "footprint_weight": 1.0, "untied": False,
        "logit": np.where(generator.random(n) < own, 1.0, -1.0),
    })  # fmt: skip


def test_edges_lie_half_a_step_outside_and_nothing_is_snapped():
    assert np.allclose(completeness.make_edges((0.5, 0.75, 1.0)), (0.375, 0.625, 0.875, 1.125))
    table = make_table(4, 0.5).assign(depth_r=[22.4, 22.6, 24.5, 24.6])
    assert list(completeness.assign_cells(table, GRID)) == [-1, 0, 1, -1]
    with pytest.raises(UserError, match="equal steps"):
        completeness.make_edges((0.5, 0.75, 1.1))


def test_insufficient_cells_say_why():
    table = pd.concat([make_table(250, 0.5), make_table(50, 0.5).assign(theta_E=1.5),
                       make_table(250, 0.5).assign(psfsize_r=1.2, brickname="one")])  # fmt: skip
    parent = pd.DataFrame({"psfsize_r": [1.0, 1.2], "depth_r": [24.0, 23.0], "nobs_g": 2, "nobs_r": 2, "nobs_z": 2})
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, parent).set_index(["theta_E", "seeing", "depth"])
    assert cells.loc[(1.0, 1.0, 23.0), "sufficient"]
    assert "injections" in cells.loc[(1.5, 1.0, 23.0), "reason"]
    assert "bricks" in cells.loc[(1.0, 1.2, 23.0), "reason"]
    assert "outside the parent sample" in cells.loc[(1.0, 1.0, 24.0), "reason"]
    assert "no survey area" in cells.loc[(1.0, 1.2, 24.0), "reason"]
    assert not cells["sufficient"].drop((1.0, 1.0, 23.0)).any()


def test_intervals_cover_when_hosts_repeat():
    """Hosts of 0.5 +- 0.35 used four times each: the plain interval is too narrow, the one with n_eff is not."""
    covered, plain = [], []
    for seed in range(80):
        cells = completeness.count_cells(make_table(240, 0.5, seed, 4, 0.35), GRID, {"t": 0.0}, CONFIG)
        row = cells[cells["n"] > 0].iloc[0]
        covered.append(row["lower_95"] <= 0.5 <= row["upper_95"])
        plain.append(abs(row["completeness"] - 0.5) < 1.96 * 0.5 / np.sqrt(240))
    assert np.mean(covered) > 0.90
    assert np.mean(plain) < np.mean(covered)


def test_averages_follow_the_weights():
    table = pd.concat([make_table(300, 0.2, 1), make_table(300, 0.8, 2).assign(depth_r=24.0, footprint_weight=3.0)])
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG)
    flat = completeness.average_cells(cells, (), table, GRID, {"t": 0.0}, CONFIG, "flat")["completeness"][0]
    weighted = completeness.average_cells(cells, (), table, GRID, {"t": 0.0}, CONFIG)["completeness"][0]
    assert np.isclose(flat, 0.5, atol=0.05) and np.isclose(weighted, 0.65, atol=0.05)


def test_bins_refuse_an_unknown_axis():
    with pytest.raises(UserError, match="z_lens"):
        completeness.tabulate_bins(make_table(10, 0.5), {"z_lens": (0.0, 1.0)}, {"t": 0.0})


def test_gates_compose():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"detectability": generator.random(2000), "logit": generator.normal(size=2000)})
    row = two_gates.tabulate_gates(table, 0.7, 0.5).iloc[0]
    assert np.isclose(row["recall"], row["p_m_d"] * row["p_d"] + row["p_m_nd"] * (1 - row["p_d"]))
    assert row["n_both"] + row["n_model_only"] + row["n_gate_only"] + row["n_neither"] == 2000
    assert np.isclose(row["missed_invisible"] + row["missed_visible"], 1.0)
