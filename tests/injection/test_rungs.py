"""The forecast that spares renderings takes no injection away from the ladder."""

import numpy as np
import torch
from test_injection import make_samples

from lensaudit.config import CompletenessConfig, Config
from lensaudit.injection import hosts as host_module
from lensaudit.injection import rungs
from lensaudit.injection.population import load_prior

CONFIG = Config(device="cpu", completeness=CompletenessConfig(seeing=(1.0, 1.3), depth=(24.0, 25.0)))


def test_clumpy_sources_are_not_thrown_away_by_the_forecast(monkeypatch):
    """The same rows as with a forecast three times too low at most; with a smooth source's slack 7 of 599 differ."""
    torch.set_num_threads(1)
    hosts, seed = host_module.make_hosts(*make_samples()), 3
    priors = (load_prior("published_2026"), load_prior("collett"))
    plan = rungs.plan_rungs(hosts, CONFIG.completeness, 600, seed, priors[1]).iloc[:250]
    drawn = rungs.draw_rung(plan, hosts, frozenset(rungs.DRAWN), priors, CONFIG, seed)
    monkeypatch.setattr(rungs, "ROUGH_SLACK", 3.0)
    monkeypatch.setattr(rungs, "SLACK", 3.0)
    every = rungs.draw_rung(plan, hosts, frozenset(rungs.DRAWN), priors, CONFIG, seed)
    assert np.array_equal(drawn["injection_id"], every["injection_id"])
    different = (drawn["source_x"] != every["source_x"]).to_numpy()
    assert (drawn["n_clumps"] > 0).mean() > 0.4 and different.mean() <= 0.004
