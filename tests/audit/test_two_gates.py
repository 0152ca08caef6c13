"""Two gates: intervals know that injections share galaxies and bricks."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit import two_gates
from lensaudit.figures.completeness import plot_gates


def make_table(repeats):
    """Injections whose outcome is their host's alone, each host used `repeats` times."""
    generator = np.random.default_rng(0)
    n = 1200 // repeats
    table = pd.DataFrame({"detectability": generator.random(n), "logit": generator.normal(size=n),
                          "host_index": np.arange(n), "brickname": np.arange(n).astype(str)})  # fmt: skip
    return table.loc[table.index.repeat(repeats)].reset_index(drop=True)


def test_reused_hosts_widen_every_interval_to_that_of_the_hosts():
    for name in ("p_d", "p_m_d", "p_m_nd", "recall", "missed_invisible", "missed_visible"):
        row = two_gates.tabulate_gates(make_table(6), 0.6, 0.3).iloc[0]
        flat = two_gates.tabulate_gates(make_table(6).drop(columns=["host_index", "brickname"]), 0.6, 0.3).iloc[0]
        wide, narrow = (r[f"{name}_upper"] - r[f"{name}_lower"] for r in (row, flat))
        assert np.isclose(row[name], flat[name]) and np.isclose(wide / narrow, np.sqrt(6), rtol=0.06)


def test_rows_of_their_own_keep_the_plain_interval_and_an_empty_bin_is_empty():
    table = make_table(1)
    row = two_gates.tabulate_gates(table, 0.6, 0.3).iloc[0]
    plain = stats.jeffreys_interval(row["n_detectable"], len(table))
    assert np.allclose([row["p_d_lower"], row["p_d_upper"]], plain)
    bins = two_gates.tabulate_gates(table, 0.6, 0.3, {"detectability": (0.0, 1.0, 2.0)})
    assert list(bins["n"]) == [len(table), 0] and np.isnan(bins["recall"].iloc[1])


def test_a_condition_that_the_lenses_lack_is_named():
    with pytest.raises(UserError, match="lenses has no colour; it has brickname, detectability"):
        two_gates.compare_gates({"lenses": make_table(1)}, 0.6, 0.3, {"colour": (0.0, 1.0)})
    with pytest.raises(UserError, match="no detectability"):
        two_gates.tabulate_gates(make_table(1).drop(columns="detectability"), 0.6, 0.3)


def test_the_gate_is_traced_over_its_rate_with_the_model_fixed():
    """Detectability N(0, 1) of negatives and N(1, 1) of arcs, independent of the model: P(D) = Q(Q^-1(f) - 1)."""
    generator = np.random.default_rng(1)
    negatives = pd.DataFrame({"detectability": generator.normal(size=20_000), "label": 0, "pool": "N1",
                              "inclusion_probability": 0.5})  # fmt: skip
    gates = two_gates.set_gates(negatives, 100)
    assert gates["fpr"].tolist() == list(two_gates.GATE_FPRS) and (gates["status"] == "too few negatives").sum() == 1
    arcs = pd.DataFrame({"detectability": generator.normal(1, 1, 5000), "logit": generator.normal(size=5000)})
    table = two_gates.trace_gates({"injections": arcs, "lenses": arcs.head(60)}, gates, 0.5)
    own = table[table["population"] == "injections"].set_index("lower_edge")
    expected = sps.norm.sf(sps.norm.isf(own.index) - 1)
    assert len(own) == len(gates) - 1 and own["recall"].nunique() == 1
    assert np.abs(own["p_d"] - expected).max() < 0.035  # 4 sigma: of 5000 arcs, and of a threshold set on 20,000
    assert np.abs(own["missed_invisible"] - (1 - expected)).max() < 0.04
    axes = plot_gates(table).axes
    drawn = [line for line in axes[4].lines if len(line.get_xdata()) == len(own)]
    assert any(np.allclose(line.get_ydata(), own["p_d"]) for line in drawn) and axes[4].get_xscale() == "log"
    none = two_gates.set_gates(negatives.head(20), 100)
    assert two_gates.trace_gates({"lenses": arcs}, none, 0.5).empty
