"""Scatter between detectors, against planted scatter and against none."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from lensaudit.artifacts import UserError
from lensaudit.audit import completeness, members
from lensaudit.config import load_config

CONFIG = load_config("demo")
GRID = {"theta_E": np.arange(1.0, 6.0, 0.5), "seeing": (1.0, 1.2), "depth": (23.0, 24.0)}


def make_tables(n_detectors, sigma, seed=0, noise=0.5):
    """Grid of 40 cells, 200 injections in 50 hosts each; detectors shift a cell by sigma times a normal."""
    generator = np.random.default_rng(seed)
    index = np.repeat(np.arange(40), 200)
    i, j, k = np.unravel_index(index, (10, 2, 2))
    host = 50 * index + np.tile(np.arange(200) // 4, 40)
    table = pd.DataFrame({
        "injection_id": np.arange(len(index)), "theta_E": GRID["theta_E"][i], "psfsize_r": np.take(GRID["seeing"], j),
        "depth_r": np.take(GRID["depth"], k), "host_index": host, "brickname": (host % 97).astype(str),
        "footprint_weight": 1.0, "untied": False})  # fmt: skip
    common = 0.6 * generator.normal(size=2000)[host] + generator.normal(size=len(index))
    shift = sigma * generator.normal(size=(n_detectors, 40))
    own = noise * generator.normal(size=(n_detectors, 2000))
    fresh = noise * generator.normal(size=(n_detectors, len(index)))
    return {f"seed_{m}": table.assign(logit=common + shift[m][index] + own[m][host] + fresh[m])
            for m in range(n_detectors)}  # fmt: skip


def compare(tables):
    table = next(iter(tables.values()))
    hosts = table.drop_duplicates("host_index").assign(deflector_weight=1.0, deployment_weight=1.0)
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, hosts)
    return members.measure_seeds(tables, {name: {"t": 0.0} for name in tables}, cells, GRID)


def test_planted_scatter_comes_back_and_counting_alone_gives_none():
    planted = compare(make_tables(6, 0.15))
    # A shift of 0.15 in a logit of standard deviation sqrt(0.36 + 1 + 0.25 + 0.25), read at its median.
    expected = 0.15 * sps.norm.pdf(0.0) / np.sqrt(1.86)
    assert members.pool_seeds(planted)["sigma_excess"].item() == pytest.approx(expected, rel=0.2)
    none = compare(make_tables(6, 0.0))
    ratio = np.mean(none["sigma_seed"] ** 2) / np.mean(none["sigma_counting"] ** 2)
    assert ratio == pytest.approx(1.0, abs=0.25) and members.pool_seeds(none)["sigma_excess"].item() < 0.4 * expected


def test_two_detectors_have_one_degree_of_freedom():
    tables = make_tables(2, 0.15)
    seeds = compare(tables)
    difference = seeds["completeness_seed_0"] - seeds["completeness_seed_1"]
    assert np.allclose(seeds["sigma_seed"], np.abs(difference) / np.sqrt(2.0))
    row = members.pool_seeds(seeds).iloc[0]
    assert row["dof"] == 1 and row["n_cells"] == seeds["sufficient"].sum()
    # sigma / s of one degree of freedom is 1 / |normal|: 0.61 to 4.97 holds the middle 68 %.
    assert row["factor_lower"] == pytest.approx(1 / sps.norm.isf(0.08), rel=1e-6)
    assert row["factor_upper"] == pytest.approx(1 / sps.norm.isf(0.42), rel=1e-6)
    assert "2 detectors, 1 degree of freedom" in row["note"]


def test_injections_are_joined_by_id_and_bad_input_is_refused():
    tables = make_tables(2, 0.1)
    shuffled = {name: table.sample(frac=1, random_state=3) for name, table in tables.items()}
    pd.testing.assert_frame_equal(compare(tables), compare(shuffled))
    table, other = tables.values()
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, table.drop_duplicates("host_index").assign(
        deflector_weight=1.0))  # fmt: skip
    cuts = {"a": {"t": 0.0}, "b": {"t": 0.0}}
    for given, limits, text in (
        ({"a": table}, cuts, "needs two"), ({"a": table, "b": other.iloc[1:]}, cuts, "b: scored other"),
        ({"a": table, "b": other}, cuts | {"b": {"u": 0.0}}, "no operating point"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=text):
            members.measure_seeds(given, limits, cells, GRID)
    seeds = members.measure_seeds({"a": table, "b": other}, cuts | {"b": {"t": 99.0}}, cells, GRID)
    assert (seeds["reason"] == "b: threshold above every score").all() and not seeds["sufficient"].any()
    row = members.pool_seeds(seeds).iloc[0]
    assert row["note"] == "no cell is sufficient" and np.isnan(row["sigma_excess"]) and row["n_cells"] == 0
