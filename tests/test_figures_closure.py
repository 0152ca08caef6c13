"""Closure's figure: every row in its panel and in words, red where it does not close, drawn when nothing can be; and
what the maps carry."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from lensaudit.audit import verdict
from lensaudit.figures.completeness import plot_closure, plot_maps, plot_slices, plot_zlens
from lensaudit.figures.style import COLOURS
from lensaudit.wording import name_closure_row


def make_row(predicted=0.4, text="too few"):
    numbers = {"recall": 0.5, "recall_lower": 0.4, "recall_upper": 0.6, "predicted": predicted, "n_lenses": 90,
               "predicted_lower": predicted - 0.1, "predicted_upper": predicted + 0.1}  # fmt: skip
    return verdict.make_empty_row(text) | numbers | {"n_unsupported": 3}


def make_closure(controls=True):
    kinds = ("twins", "grid", *verdict.DIAGNOSES)
    failed = make_row(0.2, "does not close")
    parts = {"conditional": failed, "calibrated": verdict.make_empty_row(), "twins": make_row()}
    entry = failed | {kind: make_row() for kind in kinds} | {
        "fpr": 0.01, "controls": {k: parts for k in ("unspoiled", "faint")} if controls else {}}  # fmt: skip
    return entry | {"fpr_1e-3": entry}


def test_rows_stand_in_their_panels_and_failures_are_red():
    table = pd.concat([verdict.tabulate_closure(make_closure()),
                       verdict.tabulate_closure(make_closure(False), "companion")], ignore_index=True)  # fmt: skip
    axes = plot_closure(table, pd.DataFrame()).axes
    main, controls = ([t.get_text() for t in axes[i].get_yticklabels()] for i in (0, 2))
    assert main == [name_closure_row(k) for k in ("main", *verdict.DIAGNOSES, "twins", "grid")] and len(axes) == 4
    assert controls == ["correct injections, same number", "sources 1 mag too faint"]
    shapes = [t.get_text() for t in axes[2].get_legend().get_texts()]
    assert shapes == ["conditional", "selection inferred", "twins"]
    assert [t.get_text() for t in axes[2].texts] == ["cannot be computed"] * 2
    assert axes[3].get_legend() is None
    points = {line.get_xdata()[0]: to_hex(line.get_color()) for line in axes[0].lines if line.get_marker() in "os"}
    assert points[0.2].upper() == COLOURS["vermilion"] and points[0.4] == "#000000"


def test_tertiles_of_the_companion_are_open():
    numbers = {"predicted": [0.2, 0.3], "recall": [0.3, 0.4], "predicted_lower": 0.1, "predicted_upper": 0.5,
               "recall_lower": 0.2, "recall_upper": 0.5, "axis": ["theta_E", "depth"]}  # fmt: skip
    audited = pd.DataFrame(numbers)
    both = pd.concat([audited.assign(detector="audited"), (audited.assign(predicted=0.7, detector="companion"))])
    axis = plot_closure(verdict.tabulate_closure(make_closure()), both).axes[3]
    fills = {(x, to_hex(line.get_markerfacecolor()) == "#ffffff") for line in axis.lines for x in line.get_xdata()
             if line.get_marker() in ("o", "s")}  # fmt: skip
    assert fills == {(0.2, False), (0.3, False), (0.7, True)}
    texts = [t.get_text() for t in axis.get_legend().get_texts()]
    assert len(texts) == 3 and "open: companion" in texts


def test_nothing_to_draw_is_said():
    table = verdict.tabulate_closure(make_closure(False))
    axes = plot_closure(table.assign(recall=np.nan, predicted=np.nan), pd.DataFrame()).axes
    assert all("cannot be computed" in axes[i].texts[0].get_text() for i in (0, 1, 2))


@pytest.mark.parametrize("key", ["calibrated", "faint / calibrated"])
def test_the_row_has_one_name(key):
    assert "selection inferred" in name_closure_row(key) and "calibrated" not in name_closure_row(key)


def test_maps_carry_what_is_known_of_their_injections():
    axes = {"theta_E": [1.0, 1.5], "seeing": [1.0, 1.2], "depth": [23.0, 24.0]}
    values = {"threshold_name": "fpr_1e-2", "completeness": 0.2, "lower": 0.1, "upper": 0.3, "sufficient": True}
    cells = pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False).assign(**values)
    known, marginals = "realism: NO-GO", {axis: cells.assign(weighting="flat") for axis in axes}
    for figure in (plot_maps(cells, "fpr_1e-2", False, known), plot_slices(marginals, False, known),
                   plot_zlens(cells.rename(columns={"depth": "z_lens"}), "fpr_1e-2", False, known)):  # fmt: skip
        assert [text.get_text() for text in figure.texts] == ["realism: NO-GO"]
