"""The band over priors: its width where the answer is known, its three outcomes, the product that it blocks."""

import copy
import json

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.config import load_config
from lensaudit.injection.density import measure_density
from lensaudit.selection import SelectionFunction
from lensaudit.selection.reweighting import read_prior
from lensaudit.selection.sensitivity import measure_prior_band

GRID = {"theta_E": (0.75, 1.25), "seeing": (1.1, 1.3), "depth": (24.0, 24.5)}
THRESHOLDS = {"fpr_1e-2": {"threshold": 0.0, "lower": -0.1, "upper": 0.1}}


@pytest.fixture(autouse=True)
def frozen_priors(root, monkeypatch):
    monkeypatch.setenv("LENSAUDIT_ROOT", str(root))


def narrow(name, mag_r):
    """Return the flat prior with sources in another range of magnitudes."""
    prior = copy.deepcopy(read_prior("flat"))
    prior["source"]["mag_r"] = list(mag_r)
    return {k: v for k, v in prior.items() if k != "hash"} | {"name": name}


def make_map(found_bright, found_faint, n=1200):
    """Injections of the flat prior: every other one has a bright source (r = 23), the rest a faint one (r = 25)."""
    i = np.arange(n)
    bright = i % 2 == 0
    chance = np.where(bright, found_bright, found_faint)
    table = pd.DataFrame({
        "injection_id": i, "host_index": i // 2, "cell": -1, "theta_E": 1.25, "z_lens": 0.4, "z_source": 2.0,
        "mag_source_r": np.where(bright, 23.0, 25.0), "source_R": 0.3, "source_q": 0.7, "source_n": 1.0, "n_clumps": 0,
        "clump_fraction": 0.0, "source_x": 0.1, "source_y": 0.2, "psfsize_r": 1.1, "depth_r": 24.0, "untied": True,
        "weight": 1.0, "footprint_weight": 1.0, "logit": np.where((i // 2 % 10) < 10 * chance, 1.0, -1.0),
        "brickname": [f"b{k // 2 % 60}" for k in i],
    })  # fmt: skip
    table["mag_source_g"], table["mag_source_z"] = table["mag_source_r"] + 0.2, table["mag_source_r"] - 0.3
    table["log_q"] = measure_density(table, read_prior("flat"))
    cells = pd.MultiIndex.from_product(GRID.values(), names=list(GRID)).to_frame(index=False)
    cells["sufficient"] = (cells["theta_E"] == 1.25) & (cells["seeing"] == 1.1) & (cells["depth"] == 24.0)
    return cells.assign(threshold_name="fpr_1e-2"), table


def measure(found_bright, found_faint, priors, n=1200):
    own = make_map(found_bright, found_faint, n)
    return measure_prior_band(*own, GRID, THRESHOLDS, "fpr_1e-2", load_config("demo"), priors)


WHOLE, BRIGHT, NOWHERE = narrow("whole", (20.0, 28.0)), narrow("bright", (20.0, 24.0)), narrow("nowhere", (27.0, 28.0))


@pytest.mark.parametrize(("faint", "outcome", "reason"), [
    (0.9, "inconclusive", "nowhere"), (0.2, "NO-GO", "width 0.35"), (0.5, "inconclusive", "a limit lies inside"),
])  # fmt: skip
def test_the_band_is_that_of_the_sources(faint, outcome, reason):
    out = measure(0.9, faint, [WHOLE, BRIGHT, NOWHERE])
    assert out["priors"]["bright"]["completeness"] == pytest.approx(0.9)
    assert out["priors"]["whole"]["completeness"] == pytest.approx(0.45 + faint / 2)
    assert out["width"] == pytest.approx(0.45 - faint / 2)
    assert out["ratio"] == pytest.approx(0.9 / (0.45 + faint / 2))
    assert out["width_lower"] <= out["width"] <= out["width_upper"]
    assert out["outcome"] == outcome and out["reason"].startswith(reason)
    assert out["refused"] == {"nowhere": "no injection carries weight"}


def test_a_band_is_whole_only_without_refused_priors():
    out = measure(0.9, 0.9, [WHOLE, BRIGHT])
    assert out["outcome"] == "GO" and out["reason"] == "" and out["refused"] == {}


def test_a_small_completeness_is_held_by_the_ratio():
    out = measure(0.1, 0.0, [WHOLE, BRIGHT, narrow("faint", (24.0, 28.0))], n=4000)
    assert out["width_upper"] < out["max_width"] and out["ratio"] > out["max_ratio"]
    assert out["outcome"] == "NO-GO" and "ratio" in out["reason"]


def test_fewer_than_two_priors_are_no_band():
    out = measure(0.9, 0.2, [WHOLE, NOWHERE])
    assert out["outcome"] == "inconclusive" and out["width"] is None
    assert out["reason"] == "1 of 2 priors pass the guards of the weights; a band needs two"
    assert measure(0.9, 0.2, [WHOLE, BRIGHT], n=50)["refused"]["bright"] == "effective size 25.0 below 30"
    with pytest.raises(UserError, match="fpr_1e-9"):
        measure_prior_band(*make_map(0.9, 0.2), GRID, THRESHOLDS, "fpr_1e-9", load_config("demo"))


def test_a_wide_band_blocks_the_product_and_a_missing_one_does_not(request):
    wide, open_ = measure(0.9, 0.2, [WHOLE, BRIGHT]), measure(0.9, 0.2, [WHOLE])
    make_product = request.getfixturevalue("make_product")  # moves the root away from the frozen priors
    stage, _ = make_product(prior_band=wide)
    folder = stage.folder / "selection"
    with pytest.raises(UserError, match="the band over priors is NO-GO .width 0.35"):
        SelectionFunction.load(folder)
    with pytest.warns(UserWarning, match="not tested"):
        product = SelectionFunction.load(folder, override_no_go=True)
    attrs = product.query(1.0, 1.0, 23.0).attrs
    assert len(attrs["blocked_by"]) == 1 and "0.900 under bright, 0.550 under whole" in attrs["prior_band"]
    assert json.loads((folder / "selection.json").read_text())["prior_band"]["ratio"] == pytest.approx(wide["ratio"])
    card = (folder / "model_card.md").read_text()
    assert "**Blocked:** the band over priors is NO-GO" in card
    stage, _ = make_product(prior_band=open_)
    with pytest.warns(UserWarning, match="not tested"):
        assert SelectionFunction.load(stage.folder / "selection").description["blocked_by"] == []
    assert "a band needs two" in (stage.folder / "selection" / "model_card.md").read_text()
