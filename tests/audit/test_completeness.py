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


def make_hosts(table):
    """A host table with each row of the injections as a host."""
    return table[["psfsize_r", "depth_r", "footprint_weight"]].assign(deflector_weight=1.0, deployment_weight=1.0)


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
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, make_hosts(table), parent)
    cells = cells.set_index(["theta_E", "seeing", "depth"])
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
        table = make_table(240, 0.5, seed, 4, 0.35)
        cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, make_hosts(table))
        row = cells[cells["n"] > 0].iloc[0]
        covered.append(row["lower_95"] <= 0.5 <= row["upper_95"])
        plain.append(abs(row["completeness"] - 0.5) < 1.96 * 0.5 / np.sqrt(240))
    assert np.mean(covered) > 0.90
    assert np.mean(plain) < np.mean(covered)


def test_averages_follow_the_survey_and_not_the_hosts_used():
    """Both columns hold 300 injections; the second has 3/4 of the deflector population, most of it never used."""
    table = pd.concat([make_table(300, 0.2, 1), make_table(300, 0.8, 2).assign(depth_r=24.0)])
    hosts = pd.DataFrame({"psfsize_r": 1.0, "depth_r": [23.0] * 10 + [24.0] * 20, "footprint_weight": [1.0] * 10
                          + [1.5] * 20, "deflector_weight": 1.0, "deployment_weight": 1.0})  # fmt: skip
    assert np.allclose(completeness.share_columns(hosts, GRID), [0.25, 0.75, 0.0, 0.0])
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, hosts)
    flat = completeness.average_cells(cells, (), table, GRID, {"t": 0.0}, CONFIG, "flat")["completeness"][0]
    weighted = completeness.average_cells(cells, (), table, GRID, {"t": 0.0}, CONFIG)["completeness"][0]
    assert np.isclose(flat, 0.5, atol=0.05) and np.isclose(weighted, 0.65, atol=0.05)


def test_untied_injections_carry_no_population_weight():
    tied, untied = make_table(250, 0.2, 1), make_table(250, 0.9, 2).assign(untied=True)
    table = pd.concat([tied, untied], ignore_index=True)
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, make_hosts(table))
    assert cells["untied_fraction"][0] == 0.5 and cells["untied_fraction"][1:].isna().all()
    row = completeness.average_cells(cells, (), table, GRID, {"t": 0.0}, CONFIG).iloc[0]
    assert row["completeness"] == (tied["logit"] > 0).mean() and row["upper"] < 0.4 and row["n_cells"] == 1


def test_hosts_outside_the_grid_are_counted():
    hosts = pd.DataFrame({"psfsize_r": [1.0, 1.2, 2.0, 1.0], "depth_r": [23.0, 24.0, 23.0, 26.0],
                          "footprint_weight": 1.0, "deployment_weight": 1.0,
                          "deflector_weight": [1.0, 1.0, 2.0, 0.0]})  # fmt: skip
    counts = completeness.count_outside(hosts, GRID).set_index("population")
    assert counts["n_hosts_outside"].to_dict() == {"deflector": 1, "deployment": 2}
    assert counts["share_outside"].to_dict() == {"deflector": 0.5, "deployment": 0.5}


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
