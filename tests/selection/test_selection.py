"""The product: values of its cells, no extrapolation, the gate that blocks it, the closure that warns, its files."""

import json
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table

from lensaudit.__main__ import main
from lensaudit.artifacts import UserError
from lensaudit.selection import SelectionFunction

CLOSURE = {"closes": False, "verdict": "does not close", "recall": 0.53, "predicted": 0.226, "predicted_lower": 0.16,
           "predicted_upper": 0.29, "n_lenses": 134, "n_unsupported": 5, "fpr": 0.01, "threshold": 0.0,
           "fpr_1e-3": {"closes": True, "verdict": "closes", "recall": 0.3, "predicted": 0.31, "predicted_lower": 0.2,
                        "predicted_upper": 0.4, "n_lenses": 134, "n_unsupported": 5, "fpr": 0.001}}  # fmt: skip


def test_query_gives_the_cell_and_refuses_the_rest(make_product, product):
    _, cells = make_product()
    out = product.query(theta_E=[1.0, 1.05, 1.0, 5.0, np.nan], seeing=[1.0, 1.0, 1.2, 1.0, 1.0], depth=23.0)
    own = cells[(cells["threshold_name"] == "fpr_1e-2") & (cells["theta_E"] == 1.0) & (cells["depth"] == 23.0)
                & (cells["seeing"] == 1.0)].iloc[0]  # fmt: skip
    assert list(out["in_support"]) == [True, True, False, False, False]
    assert list(out["reason"]) == ["", "", "no host", "theta_E outside 0.75 to 1.75", "not a number"]
    assert out["p"][0] == out["p"][1] == own["completeness"]
    assert out["lower"][0] == own["lower_95"] and out["upper"][0] == own["upper_95"]
    assert list(out["untied_fraction"][:3].fillna(-1.0)) == [0.0, 0.0, -1.0]
    assert out[["p", "lower", "upper"]][2:].isna().all().all()
    narrow = product.query(1.0, 1.0, 23.0, level=0.68)
    assert out["lower"][0] < narrow["lower"][0] < narrow["upper"][0] < out["upper"][0]
    assert product.query(1.0, 1.0, 23.0, threshold="fpr_1e-3")["p"][0] < own["completeness"]


@pytest.mark.parametrize("level, end", [(0.95, "total"), (0.68, "68_total")])
def test_the_error_of_the_threshold_widens_the_interval(make_product, product, level, end):
    _, cells = make_product()
    own = cells[(cells["threshold_name"] == "fpr_1e-2") & (cells["theta_E"] == 1.0) & (cells["depth"] == 23.0)
                & (cells["seeing"] == 1.0)].iloc[0]  # fmt: skip
    counting, total = (product.query(1.0, 1.0, 23.0, level=level, threshold_error=flag) for flag in (False, True))
    assert total["lower"][0] == own[f"lower_{end}"] < counting["lower"][0] < counting["p"][0] == total["p"][0]
    assert total["upper"][0] == own[f"upper_{end}"] > counting["upper"][0]
    assert counting.attrs["errors"] == "counting" and total.attrs["errors"] == "counting and threshold"
    assert total.drop(columns=["lower", "upper"]).equals(counting.drop(columns=["lower", "upper"]))


def test_a_threshold_error_that_is_not_known_is_refused(make_product, product):
    with pytest.raises(UserError, match="own prior only"):
        product.query(1.0, 1.0, 23.0, prior="flat", threshold_error=True)
    stage, _ = make_product(draws=None)
    card = (stage.folder / "selection" / "model_card.md").read_text()
    assert "the error of the threshold they are not in this product" in card
    with pytest.warns(UserWarning):
        bare = SelectionFunction.load(stage.folder / "selection")
    assert bare.average()["p"].notna().all()
    for ask_again in (lambda: bare.query(1.0, 1.0, 23.0, threshold_error=True),
                      lambda: (bare * 0.5).average(threshold_error=True)):  # fmt: skip
        with pytest.raises(UserError, match="no sigma_threshold"):
            ask_again()
    assert "C_lo_total" not in pd.read_csv(stage.folder / "selection" / "cells.csv")


def test_edges_belong_to_the_grid_and_nothing_beyond(product):
    out = product.query([0.75, 1.75, 0.7499, 1.7501], 1.0, 23.0)
    assert list(out["in_support"]) == [True, True, False, False]
    assert list(product.query(1.0, [0.9, 0.8999], 23.0)["in_support"]) == [True, False]


def test_mistakes_are_named(product):
    with pytest.raises(UserError, match="fpr_1e-9.*fpr_1e-2"):
        product.query(1.0, 1.0, 23.0, threshold="fpr_1e-9")
    with pytest.raises(UserError, match="broadcast"):
        product.query([1.0, 1.1], [1.0, 1.1, 1.2], 23.0)
    with pytest.raises(UserError, match="level"):
        product.query(1.0, 1.0, 23.0, level=0.5)
    with pytest.raises(UserError, match="z_lens is unknown; the axes of a selection function are theta_E, seeing, dep"):
        product.query(1.0, 1.0, 23.0, z_lens=0.5)
    with pytest.raises(UserError, match="z_lens is unknown, depth is missing"):
        (product * 0.5).query(theta_E=1.0, seeing=1.0, z_lens=0.5)
    for ask_again in (product.query, product.draw, product.prior_band):
        with pytest.raises(UserError, match="seeing is missing, depth is missing"):
            ask_again(theta_E=[1.0])
    with pytest.raises(UserError, match="holds no injections.parquet"):
        product.query(1.0, 1.0, 23.0, prior={"cosmology": {}, "deflector": {}, "source": {}})


def test_no_go_blocks_unless_overridden(make_product):
    stage, _ = make_product("NO-GO")
    with pytest.raises(UserError, match="NO-GO .colour."):
        SelectionFunction.load(stage.folder / "selection")
    with pytest.warns(UserWarning, match="not tested"):
        product = SelectionFunction.load(stage.folder / "selection", override_no_go=True)
    assert product.query(1.0, 1.0, 23.0).attrs["blocked_by"] == ["realism is NO-GO (colour)"]
    assert "**Not validated.**" in (stage.folder / "selection" / "model_card.md").read_text()


def test_a_closure_that_fails_is_loud(make_product):
    stage, _ = make_product(closure=CLOSURE)
    folder = stage.folder / "selection"
    with pytest.warns(UserWarning, match="does NOT close: at fpr_1e-2 .* 0.226 .0.160, 0.290., 0.530 of 134"):
        product = SelectionFunction.load(folder)
    first, second = (product.query(1.0, 1.0, 23.0, threshold=name).attrs for name in ("fpr_1e-2", "fpr_1e-3"))
    assert first["closes"] is False and second["closes"] is True and first["blocked_by"] == []
    block = json.loads((folder / "selection.json").read_text())["closure"]
    assert block["operating_point"] == "fpr_1e-2" and block["interval"] == [0.16, 0.29] and block["n_lenses"] == 134
    card = (folder / "model_card.md").read_text()
    assert "**It does not close.**" in card and "not graded" in card and "measurement of real lenses" in card


def test_only_a_closure_that_closes_is_silent(make_product):
    stage, _ = make_product(closure=CLOSURE["fpr_1e-3"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SelectionFunction.load(stage.folder / "selection").query(1.0, 1.0, 23.0).attrs["closes"] is True
    stage, _ = make_product(closure=CLOSURE | {"verdict": "too few", "recall": None, "predicted": np.nan})
    with pytest.warns(UserWarning, match="too few"):
        assert SelectionFunction.load(stage.folder / "selection").query(1.0, 1.0, 23.0).attrs["closes"] is None


def test_a_changed_table_is_refused(make_product):
    stage, _ = make_product()
    path = stage.folder / "selection" / "cells.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="cells.parquet"):
        SelectionFunction.load(stage.folder / "selection")


def test_csv_and_fits_hold_the_cells(make_product):
    stage, cells = make_product()
    folder = stage.folder / "selection"
    plain, table = pd.read_csv(folder / "cells.csv"), Table.read(folder / "cells.fits", hdu=1)
    names = {"C_lo": "lower_68", "C": "completeness", "C_hi": "upper_68", "n": "n", "upper_total": "upper_total",
             "C_lo_total": "lower_68_total", "sigma_threshold": "sigma_threshold"}  # fmt: skip
    for name, column in names.items():
        assert np.allclose(plain[name], cells[column], equal_nan=True, rtol=1e-5)
        own = np.ma.filled(table[name].astype(float), np.nan)
        assert np.array_equal(own, cells[column].astype(float), equal_nan=True)
    assert [str(v).strip() for v in table["threshold_name"]] == list(cells["threshold_name"])
    assert table["sufficient"].dtype == bool and list(table["sufficient"]) == list(cells["sufficient"])
    assert table["theta_E"].unit == units.arcsec and table["depth"].unit == units.mag
    header = fits.getheader(folder / "cells.fits", 1)
    comments = {header[f"TTYPE{i}"]: header[f"TCOMM{i}"] for i in range(1, header["TFIELDS"] + 1)}
    assert comments["C"].startswith("P(detected)") and len(comments) == len(table.colnames)
    said = json.loads((folder / "selection.json").read_text())
    assert "total" in said["interval"] and said["units"]["upper_total"] == said["units"]["lower_68"] == "fraction"
    first = (folder / "cells.fits").read_bytes()
    make_product()
    assert (folder / "cells.fits").read_bytes() == first


def test_no_threshold_at_all_still_writes(make_product):
    stage, _ = make_product(cuts={})
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no threshold could be set"):
        SelectionFunction.load(stage.folder / "selection").query(1.0, 1.0, 23.0)


def test_a_million_queries_are_quick(product):
    theta = np.random.default_rng(0).uniform(0.5, 2.0, 1_000_000)
    start = time.process_time()
    product.query(theta, 1.0, 23.5)
    assert time.process_time() - start < 2.0


def ask(folder, *more):
    return main(["query", str(folder), "--theta-E", "1.0", "9", "--seeing", "1.0", "--depth", "23.0", *more])


def test_command_line(make_product, capsys):
    stage, cells = make_product(closure=CLOSURE)
    folder = stage.folder / "selection"
    assert ask(folder) == 0
    text = capsys.readouterr().out
    assert "does NOT close" in text and "theta_E outside 0.75 to 1.75" in text and "fpr_1e-2" in text
    assert "realism: GO; panel: not graded" in text and "errors of counting\n" in text
    assert ask(folder, "--csv", "--threshold", "fpr_1e-3", "--threshold-error") == 0
    *notes, head, first, _ = capsys.readouterr().out.splitlines()
    own = cells[(cells["threshold_name"] == "fpr_1e-3") & cells["sufficient"]].iloc[0]
    assert all(note.startswith("# ") for note in notes) and head.startswith("theta_E,seeing,depth,p,lower,upper,n_eff")
    assert "counting and threshold" in notes[0] and "closure" in notes[1] and "panel: not graded" in notes[2]
    found = [float(text) for text in first.split(",")[3:6]]
    assert found == pytest.approx(list(own[["completeness", "lower_total", "upper_total"]]), rel=1e-5)


def test_command_line_says_what_blocks(make_product, capsys):
    stage, _ = make_product("NO-GO")
    assert ask(stage.folder / "selection") == 2
    capsys.readouterr()
    assert ask(stage.folder / "selection", "--override-no-go") == 0
    text = capsys.readouterr().out
    assert "realism: NO-GO (colour); panel: not graded" in text
    assert "\033[31mNOT VALIDATED, realism is NO-GO (colour)" in text


@pytest.mark.parametrize("more, text", [(("--threshold", "none"), "threshold 'none'"), (("--prior", "x"), "prior 'x'"),
                                        (("--depth", "deep"), "--depth: 'deep' is not a number"),
                                        (("--level", "0.5"), "level 0.5")])  # fmt: skip
def test_command_line_names_a_mistake_in_one_line(make_product, capsys, more, text):
    stage, _ = make_product()
    assert ask(stage.folder / "selection", *more) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.strip().splitlines()) == 1
