"""A selection function in memory: reading a product, asking it, under its own prior or another.

The value of a query is that of its cell: nothing is interpolated and nothing is extrapolated.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, hash_file, read_json, read_table
from lensaudit.audit.completeness import AXES, THRESHOLD_COLUMNS
from lensaudit.selection.card import describe_band, describe_closure, describe_realism
from lensaudit.selection.cells import Cells, broadcast_points, check_level, measure_moves
from lensaudit.selection.composition import Selection
from lensaudit.selection.product import FORMAT
from lensaudit.selection.reweighting import read_prior, weigh_cells
from lensaudit.selection.sensitivity import PRIORS

TOTAL = {"68": "68_total", "95": "total"}  # ends of the columns whose bounds hold the threshold's error, by level


class SelectionFunction(Selection):
    """A selection function in memory. Made by `load`.

    Parameters
    ----------
    cells : pandas.DataFrame
    description : dict
        The content of ``selection.json``.
    folder : path, optional
        Of the product: other priors and footprint averages read their tables from it when they are asked for.
    """

    def __init__(self, cells, description, folder=None):
        self.cells, self.description, self.folder = cells, description, folder
        self.axes = {axis: np.asarray(description["axes"][axis], dtype=float) for axis in AXES}
        self.shape = tuple(len(self.axes[axis]) for axis in AXES)
        self.product, self._known = self, {}

    @classmethod
    def load(cls, folder, override_no_go=False):
        """Read a selection function; warns when closure does not say that it closes.

        Parameters
        ----------
        folder : path
        override_no_go : bool
            Load a product whose realism gate, or band over priors, said NO-GO; its numbers are then not validated.

        Raises
        ------
        UserError
            When a gate blocks it, a file is missing, or the cells are not those the description was written for.
        """
        folder = Path(folder)
        if not (folder / "selection.json").is_file():
            raise UserError(f"{folder}: holds no selection.json; give the folder of a product, such as "
                            "artifacts/demo/07_completeness/selection")  # fmt: skip
        description = read_json(folder / "selection.json")
        if description.get("format") != FORMAT:
            raise UserError(f"{folder.name}/selection.json: format {description.get('format')!r} is not {FORMAT!r}; "
                            "write the product again")  # fmt: skip
        if description["blocked_by"] and not override_no_go:
            blocks = "; ".join(description["blocked_by"])
            raise UserError(f"{folder.name}: {blocks}; override_no_go=True reads it unvalidated")
        own = cls(None, description, folder)
        own.cells = own._read("cells.parquet")
        if description["closure"]["closes"] is not True:
            # Under the product's name: a notebook shows it alike wherever it ran, and every time.
            warnings.warn_explicit(describe_closure(description["closure"]), UserWarning, "selection.json", 1)
        return own

    def _read(self, name):
        """Read a table of the product after checking that it is the one `selection.json` describes."""
        expected = self.description["files"].get(name)
        if expected is None:
            raise UserError(f"this product holds no {name}; write it with that table to ask for this")
        path = Path(self.folder or ".") / name
        if not path.is_file() or hash_file(path) != expected:
            raise UserError(f"{path.parent.name}/{name}: not the table selection.json describes; write it again")
        return read_table(path)

    def read_conditions(self):
        """Return the stored shares of the footprint in seeing and depth; see `footprint.grid_conditions`."""
        return self._read("conditions.parquet")

    def query(self, theta_E=None, seeing=None, depth=None, threshold=None, prior=None, level=0.95,
              threshold_error=False, **others):  # fmt: skip
        """Return the probability of detection.

        Parameters
        ----------
        theta_E, seeing, depth : float or array_like
            Broadcast against each other: Einstein radius [arcsec], psfsize_r [arcsec], 5-sigma r depth [mag].
        threshold : str, optional
            Operating point, such as ``"fpr_1e-2"``; the product's default otherwise.
        prior : str, path or dict, optional
            Another prior than that of the map: the name of a frozen one or a TOML file; see `reweighting`.
        level : float
            0.68 or 0.95.
        threshold_error : bool
            Whether lower and upper hold the error of the threshold too, of the finitely many negatives that set it;
            else they hold that of counting injections, hosts and bricks alone. All cells share that error: it does not
            average out. Known under the map's own prior only.
        **others
            Refused: these are all axes and options there are.

        Returns
        -------
        pandas.DataFrame
            theta_E, seeing, depth, p, lower, upper, n_eff, untied_fraction, in_support, reason. Outside the grid, in a
            cell that is not sufficient, and where a guard of the weights trips, in_support is False, p, lower, upper
            are NaN and reason says why: the function does not extrapolate. untied_fraction is the share of the cell's
            injections whose host could not make such an arc. attrs: closes, closure, blocked_by (the gates that said
            NO-GO), realism, prior_band, simulated, version, threshold, prior, level, errors.

        Raises
        ------
        UserError
            For a missing or unknown axis, an unknown threshold, prior or level, values that do not broadcast or are
            not numbers, and `threshold_error` where the product does not know it.
        """
        values, level_name = broadcast_points(theta_E, seeing, depth, others), check_level(level)
        cells = self.parts(threshold, prior, threshold_error)[0]
        number, reason = cells.locate(values)
        inside, support = reason == cells.reason_of[number], reason == 0
        out, end = dict(values), TOTAL[level_name] if threshold_error else level_name
        for name, column in (("p", "p"), ("lower", f"lower_{end}"), ("upper", f"upper_{end}")):
            out[name] = np.where(support, cells.table[column].to_numpy()[number], np.nan)
        out["n_eff"] = np.where(inside, cells.table["n_eff"].to_numpy()[number], 0.0)
        out["untied_fraction"] = np.where(inside, cells.table["untied_fraction"].to_numpy()[number], np.nan)
        text = pd.Categorical.from_codes(reason, categories=cells.reasons)
        out = pd.DataFrame(out | {"in_support": support, "reason": text})
        out.attrs.update(self.describe(threshold, prior, level, threshold_error))
        return out

    def prior_band(self, theta_E=None, seeing=None, depth=None, threshold=None, priors=PRIORS, level=0.95, **others):
        """Return the range of the probability over named priors, on the same injections.

        Parameters
        ----------
        theta_E, seeing, depth, threshold, level
            As for `query`.
        priors : sequence of str, path or dict

        Returns
        -------
        pandas.DataFrame
            theta_E, seeing, depth, p_min, p_max, lower (least of the lower bounds), upper (largest of the upper),
            n_priors (with support there), in_support (at least one), missing (names of those without).
        """
        if not len(priors):
            raise UserError("prior_band: no prior is named")
        found = [self.query(theta_E, seeing, depth, threshold, prior, level, **others) for prior in priors]
        stack = {c: np.stack([f[c].to_numpy() for f in found]) for c in ("p", "lower", "upper", "in_support")}
        support = stack["in_support"].any(axis=0)
        names = np.array([f.attrs["prior"] for f in found], dtype=object)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # cells that no prior supports stay NaN
            out = found[0][list(AXES)].assign(
                p_min=np.nanmin(stack["p"], axis=0), p_max=np.nanmax(stack["p"], axis=0),
                lower=np.nanmin(stack["lower"], axis=0), upper=np.nanmax(stack["upper"], axis=0),
                n_priors=stack["in_support"].sum(axis=0), in_support=support,
                missing=[", ".join(names[~row]) for row in stack["in_support"].T],
            )  # fmt: skip
        out.attrs.update(found[0].attrs | {"prior": ", ".join(names)})
        return out

    def describe(self, threshold=None, prior=None, level=0.95, threshold_error=False):
        """Return what a result is of, as kept in its attrs."""
        own, name = self.description, self._name_threshold(threshold)
        closure = own["closure"] | own["closure"].get("points", {}).get(name, {})
        prior_name = own["prior_name"] if prior is None else str(read_prior(prior).get("name", prior))
        return {"closes": closure["closes"], "closure": describe_closure(closure), "blocked_by": own["blocked_by"],
                "realism": describe_realism(own["realism"]), "prior_band": describe_band(own.get("prior_band")),
                "simulated": own["simulated"], "version": own["version"], "threshold": name, "prior": prior_name,
                "level": level, "errors": "counting and threshold" if threshold_error else "counting"}  # fmt: skip

    def parts(self, threshold=None, prior=None, threshold_error=False):
        """Return its cells under a prior, as the one part of a product; refuses a threshold's error it lacks."""
        if threshold_error and prior is not None:
            raise UserError("threshold_error: known under the map's own prior only; leave out prior or threshold_error")
        missing = [c for c in THRESHOLD_COLUMNS if c not in self.cells]
        if threshold_error and missing:
            raise UserError(f"threshold_error: the cells of this product have no {missing[0]}; write it from cells "
                            "counted with the thresholds' draws")  # fmt: skip
        return [self._tabulate(threshold, prior)]

    def _name_threshold(self, threshold):
        name = threshold or self.description["default"]
        if name not in self.description["thresholds"]:
            known = ", ".join(self.description["thresholds"]) or "none (no threshold could be set)"
            raise UserError(f"threshold {name!r} is not in this product; it has {known}")
        return name

    def _tabulate(self, threshold, prior):
        """Return the cells at an operating point under a prior, made once."""
        name = self._name_threshold(threshold)
        loaded = None if prior is None else read_prior(prior)
        key = f"{self.description['version']}/{name}/{'' if loaded is None else loaded['hash']}"
        if key not in self._known:
            own = self.cells[self.cells["threshold_name"] == name].sort_values(list(AXES), kind="stable")
            own = own.rename(columns={"completeness": "p"}).reset_index(drop=True)
            if loaded is None:
                k_eff = own["n_eff"] * own["p"].fillna(0.0)
                table = own.assign(alpha=k_eff + 0.5, beta=own["n_eff"] - k_eff + 0.5)
                if set(THRESHOLD_COLUMNS) <= set(own):
                    table["threshold_down"], table["threshold_up"] = measure_moves(own)
            else:
                table = self._weigh(own, name, loaded)
            self._known[key] = Cells(self.axes, table, key)
        return self._known[key]

    def _weigh(self, own, name, prior):
        if "injections" not in self._known:
            self._known["injections"] = self._read("injections.parquet")
        rho = tuple(own[c].iloc[0] if len(own) else 0.0 for c in ("rho_host", "rho_brick"))
        return weigh_cells(self._known["injections"], self.axes, self.description["thresholds"][name], prior, rho,
                           self.description["rules"]["min_bricks"])  # fmt: skip
