"""Cells, their intervals with reused hosts, and the two gates."""

import numpy as np
import pandas as pd
import pytest

from lensaudit import stats
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


def test_intervals_cover_when_hosts_and_bricks_repeat():
    """88 cells of 204 in 51 hosts of 6 bricks, correlation 0.35 and 0.10 by copied flags, every cell with its own p.

    Fast form of `benchmarks/interval_coverage.py`; intervals that take every injection as a trial must fail it.
    """
    grid = {"theta_E": 0.5 + 0.25 * np.arange(11), "seeing": (1.0, 1.2), "depth": (22.5, 23.0, 23.5, 24.0)}
    cell, host, _ = np.indices((88, 51, 4)).reshape(3, -1)
    brick, covered, plain = host % 6, [], []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        p = 0.02 + 0.96 * (generator.permutation(88) + generator.random(88)) / 88
        u = generator.random((88, 6))[cell, brick], generator.random((88, 51))[cell, host], generator.random(len(cell))
        of_brick = generator.random((88, 51))[cell, host] < np.sqrt(0.10 / 0.35)
        copied = generator.random(len(cell)) < np.sqrt(0.35)
        flag = np.where(copied, np.where(of_brick, u[0], u[1]), u[2]) < p[cell]
        place = np.unravel_index(cell, (11, 2, 4))
        table = pd.DataFrame({
            completeness.COLUMN_OF[axis]: np.asarray(grid[axis])[i] for axis, i in zip(grid, place, strict=True)
        }).assign(host_index=host + 51 * (cell % 8), brickname=(brick + 6 * (cell % 8)).astype(str),
                  footprint_weight=1.0, logit=np.where(flag, 1.0, -1.0))  # fmt: skip
        hosts = make_hosts(table.drop_duplicates("host_index"))
        cells = completeness.count_cells(table, grid, {"t": 0.0}, CONFIG, hosts)
        covered.append([(cells[f"lower_{x}"] <= p) & (p <= cells[f"upper_{x}"]) for x in ("68", "95")])
        lower, upper = stats.jeffreys_interval(cells["k"], cells["n"])
        plain.append((lower <= p) & (p <= upper))
    # 1056 cells: one standard error is 1.5 and 0.7 points.
    assert np.all(np.mean(covered, axis=(0, 2)) > [0.655, 0.925])
    assert np.mean(plain) < 0.80


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


def test_bins_follow_any_axis_by_name():
    """Numeric and categorical axes against pandas' own counts."""
    generator = np.random.default_rng(3)
    table = make_table(3000, 0.4).assign(
        type=generator.choice(["DEV", "SER", "REX"], 3000), nobs_z=generator.integers(3, 9, 3000),
        mag_source_r=generator.uniform(21, 26, 3000), arc_surface_brightness=generator.uniform(22, 27, 3000),
    )  # fmt: skip
    bins = completeness.tabulate_bins(table, {"type": ["DEV", "SER"], "nobs_z": (2.5, 4.5, 6.5)}, {"t": 0.0})
    part = table[table["type"].isin(["DEV", "SER"]) & table["nobs_z"].between(3, 6)]
    expected = (part["logit"] > 0).groupby([part["type"], part["nobs_z"] > 4]).agg(["size", "sum"])
    assert bins[["type", "nobs_z"]].to_numpy().tolist() == [["DEV", 3.5], ["DEV", 5.5], ["SER", 3.5], ["SER", 5.5]]
    assert np.array_equal(bins[["n", "k"]], expected) and (bins["reason"] == "").all()
    for axis, edges in (("mag_source_r", (21, 24, 26)), ("arc_surface_brightness", (22, 24, 27))):
        bins = completeness.tabulate_bins(table, {axis: edges}, {"t": 0.0})
        assert bins["n"].tolist() == [int((table[axis] <= 24).sum()), int((table[axis] > 24).sum())]


def test_bins_refuse_what_they_cannot_answer():
    table = make_table(300, 0.5).assign(type="DEV", nobs_z=5)
    for columns, text in (({"z_lens": (0.0, 1.0)}, "z_lens"), ({"nobs_z": (8.0, 9.0)}, "no injection"),
                          ({"nobs_z": (6.0, 4.0)}, "do not rise"), ({"type": (0.0, 1.0)}, "classes.*DEV")):  # fmt: skip
        with pytest.raises(UserError, match=text):
            completeness.tabulate_bins(table, columns, {"t": 0.0})
    with pytest.raises(UserError, match="threshold t is None"):
        completeness.tabulate_bins(table, {"nobs_z": (4.0, 6.0)}, {"t": None})
    with pytest.raises(UserError, match="injection 7 is not finite"):
        completeness.count_cells(table.assign(logit=table["logit"].where(table.index != 7)), GRID, {"t": 0.0}, CONFIG,
                                 make_hosts(table))  # fmt: skip
    bins = completeness.tabulate_bins(table, {"nobs_z": (4.0, 6.0, 8.0)}, {"t": 0.0, "out": 5.0})
    assert bins["reason"].tolist() == ["", "no injection", "threshold above every score", "no injection"]
    assert bins["completeness"].isna().tolist() == [False, True, False, True]
    cells = completeness.count_cells(table, GRID, {"t": 0.0, "high": 5.0, "low": -5.0}, CONFIG, make_hosts(table))
    assert cells.loc[cells["n"] > 0, "sufficient"].tolist() == [True, False, False]
    assert cells.loc[cells["n"] > 0, "reason"].tolist() == ["", "threshold above every score",
                                                             "threshold below every score"]  # fmt: skip


def test_gates_compose():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"detectability": generator.random(2000), "logit": generator.normal(size=2000)})
    row = two_gates.tabulate_gates(table, 0.7, 0.5).iloc[0]
    assert np.isclose(row["recall"], row["p_m_d"] * row["p_d"] + row["p_m_nd"] * (1 - row["p_d"]))
    assert row["n_both"] + row["n_model_only"] + row["n_gate_only"] + row["n_neither"] == 2000
    assert np.isclose(row["missed_invisible"] + row["missed_visible"], 1.0)
