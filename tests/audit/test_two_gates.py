"""Two gates: intervals know that injections share galaxies and bricks."""

import numpy as np
import pandas as pd

from lensaudit import stats
from lensaudit.audit import two_gates


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
