"""The look of the figures: journal widths, embedded fonts, units on labels, the simulated sky marked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import Stage
from lensaudit.config import load_config
from lensaudit.figures import schematic, style
from lensaudit.selection import note_realism

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("width, inches", [("column", 3.32), ("text", 6.97), (2.0, 2.0)])
def test_widths(width, inches):
    figure, axis = style.new_figure(width, 2.4)
    assert tuple(figure.get_size_inches()) == (inches, 2.4) and axis.figure is figure
    figure, axes = style.new_figure("text", 2.0, 2, 3, sharex=True)
    assert axes.shape == (2, 3) and figure.get_constrained_layout()


def test_simulated_sky_is_marked_and_only_then():
    for simulated in (True, False):
        figure, _ = style.new_figure()
        style.mark_simulated(figure, simulated)
        assert any("simulated sky" in t.get_text() for t in figure.texts) is simulated


def test_mark_does_not_cover_the_axes():
    figure, axis = style.new_figure("column", 2.4)
    axis.plot([0, 1])
    axis.set_xlabel(style.label("theta_E"))
    style.mark_simulated(figure)
    figure.draw_without_rendering()
    mark = next(t for t in figure.texts if "simulated" in t.get_text())
    assert mark.get_window_extent().y1 <= axis.get_tightbbox().y0 + 1


@pytest.mark.parametrize("width", ["column", "text"])
def test_what_is_known_of_a_map_is_printed_inside_the_figure(width):
    band = {"outcome": "NO-GO", "reason": "width 0.3"}
    for realism, prior_band, colour in (({"outcome": "inconclusive"}, None, "black"),
                                        ({"outcome": "GO", "panel": "NO-GO"}, {"outcome": "GO"}, "black"),
                                        ({"outcome": "inconclusive"}, band, "vermilion"),
                                        ({"outcome": "NO-GO", "no_go": ["colour"]}, None, "vermilion")):  # fmt: skip
        figure, _ = style.new_figure(width, 2.4)
        style.mark_simulated(figure, True, note_realism(realism, prior_band))
        figure.draw_without_rendering()
        mark = next(t for t in figure.texts if "realism" in t.get_text())
        assert f"realism: {realism['outcome']}; panel: {realism.get('panel', 'not graded')}" in mark.get_text()
        assert ("not validated" in mark.get_text()) is (colour == "vermilion") and "simulated sky" in mark.get_text()
        assert mark.get_color() == style.COLOURS[colour] and mark.get_window_extent().x0 >= 0


def test_palette_is_distinguishable_without_red_and_green():
    """Brettel-like deuteranopia (Vienot et al. 1999): no two data colours fall together."""
    names = [n for n in style.COLOURS if n not in ("grey", "black")]
    rgb = np.array([matplotlib.colors.to_rgb(style.COLOURS[n]) for n in names])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    lms = linear @ to_lms.T
    lms[:, 1] = 0.494207 * lms[:, 0] + 1.24827 * lms[:, 2]
    seen = lms @ np.linalg.inv(to_lms).T
    gap = np.linalg.norm(seen[:, None] - seen[None], axis=2) + np.eye(len(names))
    assert gap.min() > 0.05


def test_labels_have_units():
    for name in ("theta_E", "seeing", "depth_r", "psfsize_z", "ra", "ebv", "flux_g", "sigma_v", "arc_g_r", "source_R"):
        assert re.search(r"\[.+\]", style.label(name)), name
    assert style.label("my_column") == "my column"


def test_pdf_embeds_truetype_and_is_reproducible(scratch_root):
    counts = pd.DataFrame({"box": ["train"], "text": ["1 lens"]})
    texts = []
    for _ in range(2):
        stage = Stage("09_summary", load_config("smoke"))
        stage.save_figure(schematic.plot_schematic(counts), "schematic", data=counts)
        texts.append((stage.folder / "figures" / "schematic.pdf").read_bytes())
    assert texts[0] == texts[1]
    assert b"/FontFile2" in texts[0] or b"CIDFontType2" in texts[0]
    assert b"/Type3" not in texts[0]


def test_schematic_shows_truth_only_on_a_simulated_sky():
    counts = pd.DataFrame({"box": ["train"], "text": ["1 lens"]})
    words = {s: {t.get_text() for t in schematic.plot_schematic(counts, s).axes[0].texts} for s in (True, False)}
    assert "truth tables" in words[True] and "truth tables" not in words[False]
    assert "1 lens" in words[False]


def test_nothing_flows_back_in_the_schematic():
    order = {name: box[0] for name, box in schematic.BOXES.items()}
    assert all(order[start] <= order[end] for start, end in schematic.FLOWS)
    assert not any(start in ("injections", "test", "truth") and end in ("train", "val", "detector", "frozen")
                   for start, end in schematic.FLOWS)  # fmt: skip


def test_a_figure_is_shown_once_in_a_notebook():
    """Figures are closed for pyplot at birth, so the inline backend does not draw them a second time."""
    code = ("from lensaudit.figures.style import new_figure\nfrom matplotlib import pyplot\n"
            "new_figure()\nassert pyplot.get_fignums() == []")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"MPLBACKEND": "agg"})
