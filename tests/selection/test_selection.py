"""The product: values of its cells, no extrapolation, the gate that blocks it, and its files."""

import time

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import Stage, UserError
from lensaudit.audit import completeness
from lensaudit.config import load_config
from lensaudit.selection import SelectionFunction, write_selection

GRID = {"theta_E": (1.0, 1.5), "seeing": (1.0, 1.2), "depth": (23.0, 24.0)}
CUTS = {"fpr_1e-2": 0.0, "fpr_1e-3": 1.0}


def make_product(root, outcome="GO"):
    config = load_config("demo")
    generator = np.random.default_rng(0)
    n = 2400
    table = pd.DataFrame({
        "theta_E": np.where(np.arange(n) % 2, 1.0, 1.5), "psfsize_r": 1.0, "depth_r": generator.choice([23.0, 24.0], n),
        "host_index": np.arange(n), "brickname": (np.arange(n) % 40).astype(str), "footprint_weight": 1.0,
        "untied": False, "logit": generator.normal(size=n),
    })  # fmt: skip
    stage = Stage("07_completeness", config)
    hosts = table.assign(deflector_weight=1.0)
    cells = completeness.count_cells(table, GRID, CUTS, config, hosts)
    write_selection(stage, cells, GRID, CUTS, {"outcome": outcome, "no_go": ["colour"]}, {"detector": "d"})
    return stage, cells


def test_query_gives_the_cell_and_refuses_the_rest(scratch_root):
    stage, cells = make_product(scratch_root)
    product = SelectionFunction.load(stage.folder / "selection")
    out = product.query(theta_E=[1.0, 1.05, 1.0, 5.0, np.nan], seeing=[1.0, 1.0, 1.2, 1.0, 1.0], depth=23.0)
    own = cells[(cells["threshold_name"] == "fpr_1e-2") & (cells["theta_E"] == 1.0) & (cells["depth"] == 23.0)
                & (cells["seeing"] == 1.0)].iloc[0]  # fmt: skip
    assert list(out["in_support"]) == [True, True, False, False, False]
    assert out["p"][0] == out["p"][1] == own["completeness"]
    assert out["lower"][0] == own["lower_95"] and out["upper"][0] == own["upper_95"]
    assert list(out["untied_fraction"][:3].fillna(-1.0)) == [0.0, 0.0, -1.0]
    assert out[["p", "lower", "upper"]][2:].isna().all().all()
    narrow = product.query(1.0, 1.0, 23.0, level=0.68)
    assert out["lower"][0] < narrow["lower"][0] < narrow["upper"][0] < out["upper"][0]
    assert product.query(1.0, 1.0, 23.0, threshold="fpr_1e-3")["p"][0] < own["completeness"]


def test_mistakes_are_named(scratch_root):
    stage, _ = make_product(scratch_root)
    product = SelectionFunction.load(stage.folder / "selection")
    with pytest.raises(UserError, match="fpr_1e-9.*fpr_1e-2"):
        product.query(1.0, 1.0, 23.0, threshold="fpr_1e-9")
    with pytest.raises(UserError, match="broadcast"):
        product.query([1.0, 1.1], [1.0, 1.1, 1.2], 23.0)
    with pytest.raises(UserError, match="level"):
        product.query(1.0, 1.0, 23.0, level=0.5)


def test_no_go_blocks_unless_overridden(scratch_root):
    stage, _ = make_product(scratch_root, "NO-GO")
    with pytest.raises(UserError, match="NO-GO .colour."):
        SelectionFunction.load(stage.folder / "selection")
    assert not SelectionFunction.load(stage.folder / "selection", override_no_go=True).description["validated"]


def test_a_changed_table_is_refused(scratch_root):
    stage, _ = make_product(scratch_root)
    path = stage.folder / "selection" / "cells.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="cells.parquet"):
        SelectionFunction.load(stage.folder / "selection")


def test_files_agree_and_a_million_queries_are_quick(scratch_root):
    stage, cells = make_product(scratch_root)
    plain = pd.read_csv(stage.folder / "selection" / "cells.csv")
    assert np.allclose(plain["C"], cells["completeness"], equal_nan=True, rtol=1e-5)
    product = SelectionFunction.load(stage.folder / "selection")
    theta = np.random.default_rng(0).uniform(0.5, 2.0, 1_000_000)
    start = time.process_time()
    product.query(theta, 1.0, 23.5)
    assert time.process_time() - start < 2.0
