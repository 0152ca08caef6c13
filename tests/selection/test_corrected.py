"""One command divides the found lenses of a stored catalogue by a stored product, at any of its operating points."""

import io

import numpy as np
import pandas as pd
import pytest

from lensaudit.__main__ import main
from lensaudit.audit.follow_up import rank_follow_up
from lensaudit.audit.selected import CATALOGUE


def test_one_command_corrects_a_stored_catalogue(make_product, tmp_path, capsys):
    stage, cells = make_product()
    n = 400
    logit = np.random.default_rng(1).normal(size=n)
    catalogue = pd.DataFrame({
        "galaxy_id": np.arange(n), "theta_E": np.where(np.arange(n) < 300, 1.0, 1.5), "z_lens": 0.5, "type": "DEV",
        "n_images": 2, "psfsize_r": np.where(np.arange(n) % 10, 1.0, 1.2), "depth_r": 23.0,
        "logit": logit})  # fmt: skip
    stage.write_table("catalogue.parquet", catalogue[list(CATALOGUE)])
    stage.close()
    for point, cut in (("fpr_1e-2", 0.0), ("fpr_1e-3", 1.0)):
        assert main(["corrected", "--threshold", point, "--csv"]) == 0
        head, text = capsys.readouterr().out.split("\n", 1)
        out = pd.read_csv(io.StringIO(text)).set_index(["variable", "left"])
        assert head == "# simulated sky"
        one = cells.query("threshold_name == @point and theta_E == 1 and seeing == 1 and depth == 23").iloc[0]
        inside = (logit > cut) & (np.arange(n) < 300) & (np.arange(n) % 10 > 0)  # seeing 1.2 has no cell
        row = out.loc[("theta_E", 1.0)]
        assert (row["n_found"], row["n_used"], row["n_true"]) == ((logit[:300] > cut).sum(), inside.sum(), 270)
        assert row["corrected"] == pytest.approx(inside.sum() / one["completeness"], rel=0.02)
    path = tmp_path / "corrected.png"
    assert main(["corrected", "--figure", str(path)]) == 0
    text = capsys.readouterr().out
    assert "closure" in text and "guard_ok" in text and path.stat().st_size > 1000
    assert main(["corrected", "--threshold", "fpr_1"]) == 2
    assert "fpr_1e-3" in capsys.readouterr().err


def test_a_candidate_without_a_radius_has_no_completeness(product):
    found = product.query([1.0, np.nan], [1.0, 1.0], [23.0, 23.0], "fpr_1e-2")
    out = rank_follow_up(pd.DataFrame({"galaxy_id": ["a", "b"]}), found, [0.1, 0.9])
    assert list(out["galaxy_id"]) == ["a", "b"] and list(out["in_support"]) == [True, False]
