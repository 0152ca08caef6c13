"""Figures of what is selected show the numbers of their tables and say that the sky is simulated."""

import numpy as np
import pandas as pd

from lensaudit.figures import selected as figures


def texts(fig):
    parts = [t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")) if t.get_text()]
    return " | ".join(parts)


def points_of(axis):
    """Return the drawn points of every error bar, shape (N, 2)."""
    return np.concatenate([c.lines[0].get_xydata() for c in axis.containers if c.lines[0] is not None])


def test_curves():
    edges = np.linspace(0.5, 2.5, 5)
    rows = pd.DataFrame({"variable": "theta_E", "left": edges[:-1], "right": edges[1:], "x": edges[:-1] + 0.2,
                         "completeness": [0.1, 0.2, 0.3, 0.4], "lower": [0.0, 0.1, 0.2, 0.3],
                         "upper": [0.2, 0.3, 0.4, 0.5], "parents": 0.5, "selected": 0.4,
                         "threshold_name": "fpr_1e-2"})  # fmt: skip
    middle = pd.DataFrame({"variable": "theta_E", "sample": ["parents", "fpr_1e-2"], "share": 0.5, "value": [1.0, 1.4]})
    fig = figures.plot_curves(rows, middle)
    assert np.allclose(points_of(fig.axes[1]), rows[["x", "completeness"]])
    assert "simulated sky" in texts(fig) and "arcsec" in texts(fig)
    assert "simulated sky" not in texts(figures.plot_curves(rows, middle, simulated=False))


def test_corrected():
    table = pd.DataFrame({"variable": "theta_E", "left": [0.5, 1.0, 1.5], "right": [1.0, 1.5, 2.0],
                          "n_found": [4, 9, 0], "n_true": [10, 12, 1], "n_used": [4, 8, 0],
                          "corrected": [11.0, 13.0, 0.0], "lower": [5.0, 9.0, 0.0],
                          "upper": [20.0, 18.0, np.nan], "guard_ok": True})  # fmt: skip
    kinds = pd.DataFrame({"variable": "type", "name": ["DEV", "SER"], "n_found": [3, 4], "n_true": [5, 6],
                          "n_used": [3, 0], "corrected": [6.0, 0.0], "lower": 2.0, "upper": 9.0,
                          "guard_ok": True})  # fmt: skip
    fig = figures.plot_corrected(pd.concat([table, kinds], ignore_index=True))
    assert "guard" not in texts(fig) and "guard" in texts(figures.plot_corrected(table.assign(guard_ok=False)))
    assert np.allclose(points_of(fig.axes[0]), [[0.75, 11.0], [1.25, 13.0]])  # none where nothing was found
    assert np.allclose(points_of(fig.axes[1]), [[0, 6.0]]) and "DEV" in texts(fig) and "simulated sky" in texts(fig)


def test_images():
    images = pd.DataFrame({"sample": ["all", "found"], "n": [100, 40], "quad_fraction": [0.2, 0.3],
                           "lower": [0.1, 0.2], "upper": [0.3, 0.45]})  # fmt: skip
    fig = figures.plot_images(images)
    assert np.allclose(points_of(fig.axes[0])[:, 0], [0.2, 0.3]) and "found (40)" in texts(fig)


def test_lists():
    z = pd.DataFrame({"variable": "z_lens", "left": [0.0, 0.5], "right": [0.5, 1.0], "n_found": [3, 1],
                      "catalog": "slacs"})  # fmt: skip
    kinds = pd.DataFrame({"variable": "host_type", "name": ["DEV", "REX"] * 2, "n_found": [1, 3, 2, 2],
                          "catalog": ["huang2021"] * 2 + ["storfer2024"] * 2})  # fmt: skip
    fig = figures.plot_lists(pd.concat([z, kinds], ignore_index=True))
    assert np.allclose(fig.axes[0].patches[0].get_data().values, [0.75, 0.25])
    bars = fig.axes[1].patches
    assert np.allclose([b.get_height() for b in bars], [0.25, 0.75, 0.5, 0.5])
    middle = np.array([b.get_x() + b.get_width() / 2 for b in bars])
    assert np.abs(middle - [0, 1, 0, 1]).max() < 0.5 and len(np.unique(middle.round(6))) == 4  # side by side
    assert "SLACS" in texts(fig) and "simulated" not in texts(fig)
