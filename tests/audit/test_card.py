"""The benchmark card takes each statistic from its artifact and puts the published number beside the right one."""

import io

import numpy as np
import pandas as pd
import pytest

from lensaudit.__main__ import main
from lensaudit.artifacts import Stage, UserError
from lensaudit.audit import card
from lensaudit.config import load_config

CUTS = {"score_0.3": -0.8, "fpr_1e-2": 1.0, "fpr_1e-3": None}


@pytest.fixture
def stage(scratch_root):
    """A profile of two cells: all of one found, a quarter of the other, which is nine tenths of the survey."""
    config = load_config("smoke")
    first, second, third = (Stage(name, config) for name in card.STAGES)
    first.write_json("thresholds.json", {k: {"threshold": v} for k, v in CUTS.items()})
    metric = {"value": 0.9, "lower": 0.85, "upper": 0.95}
    first.write_json("evaluation.json", {
        "metrics": {"auc": metric, "tpr0": metric, "tpr10": metric}, "reliability": {"ece": 0.01}})  # fmt: skip
    first.write_table("recall.parquet", pd.DataFrame({
        "subset": ["Tier A", "Tier B", "Tier A"], "point": ["score_0.3", "score_0.3", "fpr_1e-2"], "n": [40, 50, 40],
        "recall": [0.8, 0.1, 0.5], "lower_total": [0.7, 0, 0.4], "upper_total": [0.9, 1, 0.6]}))  # fmt: skip
    second.write_table("realism.parquet", pd.DataFrame({
        "sample": ["targets", "test"], "check": ["C2ST penultimate"] * 2, "value": [0.1, 0.78], "lower": 0.6,
        "upper": 0.89}))  # fmt: skip
    n = 400
    theta = np.repeat([1.0, 1.5], n // 2)
    found = np.where(theta == 1.0, True, np.arange(n) % 4 == 0)
    table = pd.DataFrame({
        "theta_E": theta, "psfsize_r": 1.05, "depth_r": 24.0, "host_index": np.arange(n), "untied": False,
        "brickname": (np.arange(n) % 20).astype(str), "mag_lensed_r": np.where(theta == 1.0, 21.0, 23.0),
        "logit": np.where(found, 0.5, -3.0), "source_R": np.linspace(0.1, 0.5, n)})  # fmt: skip
    place = pd.MultiIndex.from_product([[1.0, 1.5], [0.9, 1.05], [23.5, 24.0]], names=["theta_E", "seeing", "depth"])
    cells = place.to_frame(index=False)
    cells["sufficient"] = (cells["seeing"] == 1.05) & (cells["depth"] == 24.0)
    cells["footprint_weight"] = np.where(cells["theta_E"] == 1.5, 0.9, 0.1)
    cells = pd.concat([cells.assign(threshold_name=name) for name in CUTS], ignore_index=True)
    # Rows of the closure set that are not drawn as the prior has them are no part of a distribution.
    drawn = pd.concat([table.assign(tilted=False), table.assign(tilted=True, source_R=9.0)], ignore_index=True)
    tables = {"grid_injections": table, "cells": cells, "cells_385": cells}
    second.write_table("closure_injections.parquet", drawn)
    for name, own in tables.items():
        third.write_table(f"{name}.parquet", own)
    for made in (first, second, third):
        made.close()
    return Stage("09_summary", config, inputs=card.STAGES)


def test_each_statistic_has_its_value_and_its_published_number(stage):
    out = card.collect_card(stage).set_index(["statistic", "point"]).sort_index()

    def value(*key):
        return out.loc[[key], "value"].iloc[0]

    assert value("completeness, flat average, 385 cells", "score_0.3") == pytest.approx((1 + 0.25) / 2)
    assert value("completeness, survey average, whole grid", "score_0.3") == pytest.approx(0.1 + 0.9 * 0.25)
    assert value("completeness, flat average, 385 cells", "fpr_1e-2") == 0  # no logit above 1
    assert value("completeness, lensed r of 20 to 22", "score_0.3") == 1
    assert value("two-sample AUC, features of the network", "") == 0.78
    assert value("recall, Tier A", "score_0.3") == 0.8 and value("AUC", "") == 0.9
    half = np.sort(np.linspace(0.1, 0.5, 400)[np.r_[0:200, 200:400:4]])
    assert value("median source_R of the selected [arcsec]", "score_0.3") == pytest.approx(half[124])
    published = out.loc[[("recall, Tier A", "score_0.3")]]
    assert published["reference_value"].tolist() == [0.893] and published["remark"].iloc[0].startswith("100 of 112")
    assert out.loc[[("AUC", "")], "reference_value"].tolist() == [0.9984, 0.9579]


def test_what_cannot_be_computed_stays_empty(stage):
    out = card.collect_card(stage)
    own = out[(out["point"] == "fpr_1e-3") & (out["statistic"] == "completeness, flat average, 385 cells")]
    assert own["value"].isna().all() and own["reference_value"].tolist() == [0.0289]
    assert len(out[out["reference"] != ""]) == len(card.PUBLISHED)
    (stage.folder.parent / "06_injection_realism/realism.parquet").write_bytes(b"another file")
    with pytest.raises(UserError, match="realism.parquet"):
        card.collect_card(Stage("09_summary", stage.config, inputs=card.STAGES))


def test_one_command_prints_the_card(stage, capsys):
    assert main(["card", "--profile", "smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120 and "simulated sky" in lines[0]
    row = next(i for i, line in enumerate(lines) if line.startswith("recall, Tier A ") and "score_0.3" in line)
    assert "0.8000  [0.7000, 0.9000]" in lines[row] and lines[row].endswith(" 40")
    assert lines[row + 1].strip().startswith("0.893, Balaji & Johnson 2026 (public files, not rerun): 100 of 112")
    assert sum(line.startswith("AUC ") for line in lines) == 1  # one measurement, two published numbers below it
    assert main(["card", "--profile", "smoke", "--csv"]) == 0
    head, text = capsys.readouterr().out.split("\n", 1)
    assert head == "# simulated sky"
    out, expected = pd.read_csv(io.StringIO(text)), card.collect_card(stage)
    assert out["statistic"].tolist() == expected["statistic"].tolist()
    np.testing.assert_allclose(out[["value", "reference_value"]], expected[["value", "reference_value"]], rtol=1e-5)
    (stage.folder.parent / "06_injection_realism/manifest.json").unlink()
    assert main(["card", "--profile", "smoke"]) == 2
    assert "06_injection_realism of smoke is not made yet" in capsys.readouterr().err
