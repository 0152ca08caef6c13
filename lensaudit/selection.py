"""The released selection function: P(detected | theta_E, seeing, depth) per operating point, with its support.

A product is a folder with `cells.parquet`, the same as `cells.csv` (C_lo, C, C_hi), and `selection.json` (axes, units,
hashes of detector, injections and prior, the outcome of the realism gate). The value of a query is that of its cell:
nothing is interpolated and nothing is extrapolated.

Left for later: composition with other factors, other priors, the smooth model, FITS.

Examples
--------
>>> selection = SelectionFunction.load("artifacts/demo/07_completeness/selection")  # doctest: +SKIP
>>> selection.query(theta_E=[1.0, 1.5], seeing=1.2, depth=24.5)  # doctest: +SKIP
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, hash_file, hash_object, read_json, read_table, write_atomic
from lensaudit.audit.completeness import AXES, make_edges

FORMAT = "lensaudit selection function 1"
UNITS = {
    "theta_E": "arcsec", "seeing": "arcsec (psfsize_r)", "depth": "AB mag (5 sigma, point source, r)",
    "completeness": "fraction", "n_eff": "injections",
}  # fmt: skip


def write_selection(stage, cells, grid, thresholds, realism, hashes, simulated=True, default=None):
    """Write a selection function into the folder ``selection`` of a stage.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
    cells : pandas.DataFrame
        From `completeness.count_cells`.
    grid : dict of axis -> centres
    thresholds : dict of name -> float
        On the logit.
    realism : dict
        From `realism.summarise_realism`; a NO-GO blocks loading.
    hashes : dict
        detector, injections, prior, proposal: what the map is of.
    simulated : bool
        Whether it was measured on the simulated sky.
    default : str, optional
        Operating point of `query` when none is named; the first otherwise.

    Returns
    -------
    dict
        What ``selection.json`` says.
    """
    cells = cells[cells["threshold_name"].isin(thresholds)].reset_index(drop=True)
    stage.write_table("selection/cells.parquet", cells, {k: v for k, v in UNITS.items() if k in cells})
    plain = cells[["threshold_name", *AXES, "n", "k", "n_eff", "sufficient", "reason"]].assign(
        C_lo=cells["lower_68"], C=cells["completeness"], C_hi=cells["upper_68"]
    )
    with write_atomic(stage.output("selection/cells.csv")) as temporary:
        plain.to_csv(temporary, index=False, float_format="%.6g")
    description = {
        "format": FORMAT, "axes": {axis: list(map(float, grid[axis])) for axis in AXES}, "units": UNITS,
        "edges": "half a step outside the centres", "thresholds": dict(thresholds),
        "default": default or next(iter(thresholds), ""),
        "interval": "68 and 95 %, Jeffreys posterior with n_eff trials; C_lo and C_hi are the 68 % bounds",
        "realism": realism, "validated": realism["outcome"] != "NO-GO", "simulated": bool(simulated),
        "hashes": hashes | {"cells": hash_file(stage.output("selection/cells.parquet"))},
    }  # fmt: skip
    return stage.write_json("selection/selection.json", description | {"version": hash_object(description)[:12]})


class SelectionFunction:
    """A selection function in memory. Made by `load`.

    Parameters
    ----------
    cells : pandas.DataFrame
    description : dict
        The content of ``selection.json``.
    """

    def __init__(self, cells, description):
        self.cells, self.description = cells, description
        self.axes = {axis: np.asarray(description["axes"][axis], dtype=float) for axis in AXES}
        self.shape = tuple(len(self.axes[axis]) for axis in AXES)

    @classmethod
    def load(cls, folder, override_no_go=False):
        """Read a selection function.

        Parameters
        ----------
        folder : path
        override_no_go : bool
            Load a product whose realism gate said NO-GO; its numbers are then not validated.

        Raises
        ------
        UserError
            When the gate blocks it, a file is missing, or the cells are not those the description was written for.
        """
        folder = Path(folder)
        description = read_json(folder / "selection.json")
        if description.get("format") != FORMAT:
            raise UserError(f"{folder.name}/selection.json: format {description.get('format')!r} is not {FORMAT!r}")
        if not description["validated"] and not override_no_go:
            checks = ", ".join(description["realism"].get("no_go", []))
            raise UserError(f"{folder.name}: realism is NO-GO ({checks}); override_no_go=True reads it unvalidated")
        if not (folder / "cells.parquet").is_file() or hash_file(folder / "cells.parquet") != (
            description["hashes"]["cells"]
        ):
            raise UserError(f"{folder.name}/cells.parquet: not the table selection.json describes; write it again")
        return cls(read_table(folder / "cells.parquet"), description)

    def query(self, theta_E, seeing, depth, threshold=None, level=0.95):
        """Return the probability of detection.

        Parameters
        ----------
        theta_E, seeing, depth : float or array_like
            Broadcast against each other: Einstein radius [arcsec], psfsize_r [arcsec], 5-sigma r depth [mag].
        threshold : str, optional
            Operating point, such as ``"fpr_1e-2"``; the product's first by default.
        level : float
            0.68 or 0.95.

        Returns
        -------
        pandas.DataFrame
            theta_E, seeing, depth, p, lower, upper, n_eff, untied_fraction, in_support. Outside the grid, and in a
            cell that is not sufficient, in_support is False and p, lower, upper are NaN: the function does not
            extrapolate. untied_fraction is the share of the cell's injections whose host could not make such an arc.

        Raises
        ------
        UserError
            For an unknown threshold or level, or values that do not broadcast or are not numbers.
        """
        name = threshold or self.description["default"]
        if name not in self.description["thresholds"]:
            known = ", ".join(self.description["thresholds"]) or "none (no threshold could be set)"
            raise UserError(f"threshold {name!r} is not in this product; it has {known}")
        if level not in (0.68, 0.95):
            raise UserError(f"level {level!r} is not stored; use 0.68 or 0.95")
        try:
            values = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (theta_E, seeing, depth)))
        except (TypeError, ValueError) as error:
            raise UserError(f"query: theta_E, seeing, depth must be numbers that broadcast ({error})") from None
        values = [np.atleast_1d(v).ravel() for v in values]
        number, inside = np.zeros(len(values[0]), dtype=np.int64), np.ones(len(values[0]), dtype=bool)
        for axis, value in zip(AXES, values, strict=True):
            edges = make_edges(self.axes[axis])
            index = np.digitize(value, edges) - 1
            index[value == edges[-1]] = len(self.axes[axis]) - 1
            good = (index >= 0) & (index < len(self.axes[axis])) & np.isfinite(value)
            number = number * len(self.axes[axis]) + np.where(good, index, 0)
            inside &= good
        own = self._arrays(name, level)
        support = inside & own["sufficient"][number]
        out = pd.DataFrame(dict(zip(AXES, values, strict=True)))
        for column in ("p", "lower", "upper"):
            out[column] = np.where(support, own[column][number], np.nan)
        untied = np.where(inside, own["untied_fraction"][number], np.nan)
        return out.assign(n_eff=np.where(inside, own["n_eff"][number], 0.0), untied_fraction=untied, in_support=support)

    def _arrays(self, name, level):
        own = self.cells[self.cells["threshold_name"] == name]
        suffix = f"{100 * level:.0f}"
        columns = {"p": "completeness", "lower": f"lower_{suffix}", "upper": f"upper_{suffix}", "n_eff": "n_eff",
                   "sufficient": "sufficient", "untied_fraction": "untied_fraction"}  # fmt: skip
        own = own.sort_values(list(AXES), kind="stable")
        if len(own) != np.prod(self.shape):
            raise UserError(f"cells.parquet holds {len(own)} cells at {name}; the axes say {int(np.prod(self.shape))}")
        return {key: own[column].to_numpy() for key, column in columns.items()}
