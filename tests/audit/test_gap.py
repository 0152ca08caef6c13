"""The steps between prediction and recall, on tables whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from lensaudit.audit import gap
from lensaudit.config import load_config

CONFIG = load_config("smoke")
N_LENSES, N_TWINS = 60, 10


def make_table(n, seed, brightness, blue):
    """Arcs found by true S/N and source colour; the measured S/N says little of the true one."""
    generator = np.random.default_rng(seed)
    log_snr, colour = brightness + generator.normal(0, 0.6, n), blue + generator.normal(0, 0.3, n)
    found = generator.random(n) < expit(3.0 * (log_snr - 3.0) - 4.0 * (colour - 0.4))
    table = {name: generator.uniform(0.8, 1.6, n) for names in gap.GROUPS.values() for name in names}
    return pd.DataFrame(table).assign(
        arc_snr_true=np.exp(log_snr), arc_snr=np.exp(log_snr) + generator.normal(0, 40.0, n), source_R=0.3, mu=5.0,
        mag_source_r=24.0, mag_source_g=24.0 + colour, mag_source_z=23.5, source_x=0.1, source_y=0.1,
        logit=np.where(found, 1.0, -1.0), host_index=generator.integers(0, 200, n), weight=1.0)  # fmt: skip


@pytest.fixture(scope="module")
def steps():
    injections = make_table(6000, 1, brightness=2.2, blue=0.5)
    twins = make_table(N_LENSES * N_TWINS, 2, brightness=3.4, blue=0.1)
    twins = twins.assign(lens_id=np.repeat(np.arange(N_LENSES), N_TWINS))
    lenses = make_table(N_LENSES, 3, brightness=3.4, blue=0.1).assign(galaxy_id=np.arange(N_LENSES))
    hosts = pd.DataFrame({"host_index": np.arange(200), "mag_g": 20.0, "mag_r": 19.0, "shape_r": 1.0})
    return gap.trace_gap(injections, twins, lenses, hosts, 0.0, CONFIG).set_index("step"), twins, lenses


def test_the_truths_that_decide_close_the_gap_and_the_measured_ones_do_not(steps):
    table, twins, lenses = steps
    assert table.loc["twins", "predicted"] == pytest.approx((twins["logit"] > 0).mean())
    assert table.loc["lenses", "predicted"] == pytest.approx((lenses["logit"] > 0).mean())
    missing = table.loc["twins", "predicted"] - table["predicted"]
    assert missing["measured"] > 0.4
    assert 0.05 < missing["true S/N"] < missing["measured"] - 0.2  # the colour is still unknown
    for step in ("source colours", "source and arc", "lens and host"):
        assert abs(missing[step]) < 0.06


def test_each_truth_that_decides_raises_the_score_on_other_hosts(steps):
    score = steps[0]["log_score"]
    assert score["source colours"] > score["true S/N"] + 0.01
    assert score["lens and host"] < score["source colours"] + 0.005  # noise columns bring nothing
    assert score["measured"] < score["true S/N"]  # one yardstick for all steps


def test_a_lens_counts_once_and_thinned_rows_by_their_weight(steps):
    table, twins, lenses = steps
    injections = make_table(6000, 1, brightness=2.2, blue=0.5)
    hosts = pd.DataFrame({"host_index": np.arange(200), "mag_g": 20.0, "mag_r": 19.0, "shape_r": 1.0})
    more = pd.concat([twins, *[twins[twins["lens_id"] == 0]] * 3], ignore_index=True)
    faint = (injections["arc_snr_true"] < 9.0).to_numpy()
    kept = injections.assign(weight=np.where(faint, 2.0, 1.0))[~faint | (np.arange(len(faint)) % 2 == 0)]
    again = gap.trace_gap(kept.reset_index(drop=True), more, lenses, hosts, 0.0, CONFIG).set_index("step")
    assert again.loc["twins", "predicted"] == pytest.approx(table.loc["twins", "predicted"])
    assert again.loc["measured", "predicted"] == pytest.approx(table.loc["measured", "predicted"], abs=0.03)


def test_without_supported_lenses_there_is_nothing_to_trace(steps):
    _, twins, lenses = steps
    assert gap.trace_gap(twins, twins, lenses.head(0), pd.DataFrame(), 0.0, CONFIG).empty
