"""Products made from synthetic cells, small enough to be checked by hand."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import expon, norm

from lensaudit.artifacts import Stage
from lensaudit.audit import completeness
from lensaudit.config import load_config
from lensaudit.selection import SelectionFunction, write_selection

GRID = {"theta_E": (1.0, 1.5), "seeing": (1.0, 1.2), "depth": (23.0, 24.0)}
CUTS = {"fpr_1e-2": 0.0, "fpr_1e-3": 1.0}
SHARES = (np.arange(200) + 0.5) / 200
DRAWS = {"fpr_1e-2": 0.15 * norm.ppf(SHARES), "fpr_1e-3": 1.0 + 0.3 * (expon.ppf(SHARES) - np.log(2.0))}  # lopsided


@pytest.fixture
def make_product(scratch_root):
    """Return a function that writes a product and returns its stage and cells: seeing 1.2 has no host."""

    def make(outcome="GO", simulated=True, cuts=CUTS, draws=DRAWS, **keywords):
        config = load_config("demo")
        generator = np.random.default_rng(0)
        n = 2400
        table = pd.DataFrame({
            "theta_E": np.where(np.arange(n) % 2, 1.0, 1.5), "psfsize_r": 1.0, "untied": False,
            "depth_r": generator.choice([23.0, 24.0], n), "host_index": np.arange(n), "footprint_weight": 1.0,
            "brickname": (np.arange(n) % 40).astype(str), "logit": generator.normal(size=n),
        })  # fmt: skip
        stage = Stage("07_completeness", config)
        cells = completeness.count_cells(table, GRID, CUTS, config, table.assign(deflector_weight=1.0), draws=draws)
        realism = {"outcome": outcome, "no_go": ["colour"] if outcome == "NO-GO" else [], "panel": "not graded"}
        write_selection(stage, cells, GRID, cuts, realism, {"detector": "d"}, simulated, **keywords)
        return stage, cells

    return make


@pytest.fixture
def product(make_product):
    """Return a loaded product, its warning of closure left out."""
    stage, _ = make_product()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return SelectionFunction.load(stage.folder / "selection")
