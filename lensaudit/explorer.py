"""The explorer: one HTML file that shows a selection function, with its data inside and nothing fetched.

The page holds cells only, never injections. Cells without support carry no completeness at all, so that no reader can
take a number from them.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, to_json, write_atomic
from lensaudit.audit.completeness import AXES
from lensaudit.selection import SelectionFunction
from lensaudit.selection.card import list_blocks

BOUNDS = ("lower_68", "upper_68", "lower_95", "upper_95")
COUNTS = {
    "n": "Injected, n", "k": "Found", "n_hosts": "Galaxies used", "n_bricks": "Survey bricks",
    "n_eff": "Effective number",
}  # fmt: skip
PRIORS = {
    "collett": "Collett (2015)", "flat": "flat", "cosmos_like": "COSMOS-like sources",
    "brief": "faint arcs", "published_2026": "published in 2026",
}  # fmt: skip
REALISM = {
    "GO": "the injected arcs look like arcs of real lenses as far as the tests can see.",
    "inconclusive": "the tests cannot tell whether the injected arcs look like arcs of held-out lenses.",
    "NO-GO": "the injected arcs do not look like arcs of held-out lenses. The map is not validated.",
}  # fmt: skip
MAX_BYTES = 1_000_000
# 48 steps of the map cividis (Nunez, Anderton & Renslow 2018), the figures' own; in order for every eye.
CIVIDIS = (
    "#00224e #002656 #002a5f #002e6a #003170 #0f3570 #1a386f #243c6e #2b406d #33446d #39486c #3e4b6c #444f6c "
    "#49536c #4f576c #545a6d #595e6e #5e626e #636670 #676a71 #6c6d72 #717274 #757575 #7a7a78 #7e7d78 #848279 "
    "#898578 #8f8a78 #938e78 #989277 #9e9676 #a39a74 #a99f73 #aea371 #b5a86f #baac6d #c0b16a #c5b568 #cbb965 "
    "#d1bf61 #d6c35d #ddc858 #e2cd54 #e9d34e #efd748 #f6dd3f #fce236 #fee838"
).split()


def publish_explorer(folder, path):
    """Write the explorer of a finished product with every named prior the product can be taken to.

    Parameters
    ----------
    folder : path
        Of the product; one that realism blocks is shown too, and the page says so.
    path : path
        Of the HTML file.

    Returns
    -------
    int
        Size of the file [bytes].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the page itself says whether closure holds
        selection = SelectionFunction.load(folder, override_no_go=True)
    return write_explorer(path, tabulate_priors(selection), selection.description)


def tabulate_priors(selection, priors=tuple(PRIORS)):
    """Return prior name -> cells: the product's own, and those of each further prior it can be reweighted to.

    Parameters
    ----------
    selection : lensaudit.selection.SelectionFunction
    priors : sequence of str
        Names of frozen priors.
    """
    own = selection.description.get("prior_name", "collett")
    tables = {own: selection.cells}
    centres = [g.ravel() for g in np.meshgrid(*(selection.axes[axis] for axis in AXES), indexing="ij")]
    for prior in priors:
        try:
            parts = [_reweigh(selection, centres, point, prior) for point in selection.description["thresholds"]]
        except UserError:
            continue
        tables.setdefault(prior, pd.concat(parts, ignore_index=True))
    return tables


def _reweigh(selection, centres, point, prior):
    low, high = (selection.query(*centres, threshold=point, prior=prior, level=level) for level in (0.68, 0.95))
    return low[list(AXES)].assign(
        threshold_name=point, completeness=low["p"], lower_68=low["lower"], upper_68=low["upper"],
        lower_95=high["lower"], upper_95=high["upper"], n_eff=low["n_eff"], sufficient=low["in_support"],
        reason=low["reason"].astype(str),
    )  # fmt: skip


def write_explorer(path, tables, description):
    """Write the explorer of a selection function.

    Parameters
    ----------
    path : path
        Of the HTML file.
    tables : dict of prior name -> pandas.DataFrame
        Cells under each prior, columns of `completeness.count_cells`; n, k, n_hosts and n_bricks may be missing. The
        first prior is the one shown at the start; a further one without any support is named, not offered.
    description : dict
        The content of ``selection.json``; without ``closure`` the page says that it was not tested.

    Returns
    -------
    int
        Size of the file [bytes].

    Raises
    ------
    UserError
        For a column or cell that is missing, and when the page would exceed `MAX_BYTES`.
    """
    page = (Path(__file__).parent / "explorer.html").read_text(encoding="utf-8")
    # "</" inside a script element would end it.
    content = collect_data(tables, description)
    text = json.dumps(content, default=to_json, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    page = page.replace("__DATA__", text)
    size = len(page.encode())
    if size > MAX_BYTES:
        raise UserError(f"explorer: {size} bytes, more than {MAX_BYTES}; give it fewer priors or operating points")
    with write_atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return size


def collect_data(tables, description):
    """Return what the page shows as plain values; arguments as `write_explorer` takes them."""
    if not tables or not description["thresholds"]:
        raise UserError("explorer: the product holds no cells; no operating point could be set")
    first, *others = tables
    bare = [name for name in others if not tables[name]["sufficient"].any()]
    tables = {name: table for name, table in tables.items() if name not in bare}
    axes = {axis: [float(v) for v in description["axes"][axis]] for axis in AXES}
    points = {key: name_threshold(key) for key in description["thresholds"]}
    reasons = sorted({str(r) for t in tables.values() for r in t.loc[~t["sufficient"].astype(bool), "reason"]})
    packed = {name: {key: _pack_cells(t, key, axes, reasons, name) for key in points} for name, t in tables.items()}
    tops, limits = {}, {}
    for key in points:
        tops[key] = _round_up([p for own in packed.values() for p in own[key]["p"]])
        limits[key] = _round_up([p for own in packed.values() for p in own[key]["upper_95"]])
    default = description["default"] if description["default"] in points else next(iter(points))
    counts = [key for key in COUNTS if any(key in t for t in tables.values())]
    return {
        "axes": axes, "points": points, "default": default, "tables": packed, "reasons": reasons, "tops": tops,
        "limits": limits, "start": _find_start(packed[first][default], axes), "counts": counts, "count_names": COUNTS,
        "prior_names": {name: _name_prior(name) for name in tables},
        "priors": {name: _describe_prior(name, bare) for name in tables},
        "colours": CIVIDIS,
        "sky": "simulated sky" if description["simulated"] else "real images",
        "realism": _describe_realism(description),
        "closure": _describe_closure(description.get("closure"), points, default),
        "hashes": {"version": description["version"]} | description["hashes"],
    }  # fmt: skip


def _pack_cells(table, key, axes, reasons, prior):
    needed = ["threshold_name", *AXES, "n_eff", "completeness", *BOUNDS, "sufficient", "reason"]
    missing = [name for name in needed if name not in table]
    if missing:
        raise UserError(f"explorer: cells of prior {prior!r} have no column {', '.join(missing)}")
    own = table[table["threshold_name"] == key].sort_values(list(AXES), kind="stable")
    centres = np.stack([g.ravel() for g in np.meshgrid(*axes.values(), indexing="ij")], axis=1)
    if len(own) != len(centres) or not np.allclose(own[list(AXES)].to_numpy(dtype=float), centres):
        raise UserError(f"explorer: cells of prior {prior!r} at {key} are not those of the axes; write them again")
    known = own["sufficient"].to_numpy(dtype=bool)
    out = {"reason": [-1 if k else reasons.index(str(r)) for k, r in zip(known, own["reason"], strict=True)]}
    for name, column in [("p", "completeness"), *((bound, bound) for bound in BOUNDS)]:
        values = own[column].to_numpy(dtype=float)
        out[name] = [round(float(v), 7) if k and np.isfinite(v) else None for k, v in zip(known, values, strict=True)]
    for name in COUNTS:
        values = own[name] if name in own else [None] * len(own)
        out[name] = [None if v is None else round(float(v), 1) if name == "n_eff" else int(v) for v in values]
    return out


def _round_up(values):
    known = [v for v in values if v is not None]
    return min(1.0, np.ceil(10 * max(known)) / 10) if known and max(known) > 0 else 1.0


def _find_start(cells, axes):
    """Return the supported cell nearest the middle of the grid, so that the page opens with a number."""
    shape = tuple(len(v) for v in axes.values())
    known = np.array([p is not None for p in cells["p"]]).reshape(shape)
    where = np.argwhere(known if known.any() else ~known)
    distance = (((where - (np.array(shape) - 1) / 2) / np.array(shape)) ** 2).sum(axis=1)
    return dict(zip(AXES, where[distance.argmin()].tolist(), strict=True))


def name_threshold(key):
    """Return the name of an operating point in plain text."""
    kind, _, value = key.partition("_")
    return {"fpr": f"false-positive rate {float(value):g}", "score": f"score above {value}"}[kind] if (
        kind in ("fpr", "score") and value) else key.replace("_", " ")  # fmt: skip


def _describe_prior(name, bare):
    text = (f"Sources and lenses follow the prior “{_name_prior(name)}”; another prior gives other numbers in the same "
            "cell. Arcs were put into galaxies like those that act as lenses, in the seeing and depth of each image.")
    names = ", ".join(map(_name_prior, bare))
    return text + (f" Too few injections tell anything under: {names}." if bare else "")


def _name_prior(name):
    return PRIORS.get(name, name.replace("_", " "))


def _describe_realism(description):
    outcome = description["realism"]["outcome"]
    text = f"Realism of the injections: {outcome}; {REALISM.get(outcome, '')}"
    panel = description["realism"].get("panel")
    blocks = list_blocks(description["realism"], description.get("prior_band"))
    text += f" Comparison by eye: {panel}." if panel else ""
    text += " Not validated: the map depends too much on the prior." if outcome != "NO-GO" and blocks else ""
    return {"text": text, "bad": bool(blocks)}


def _describe_closure(closure, points, default):
    """Return verdict and sentence per operating point that was tested; the headline's stand for the others."""
    closure = closure or {"closes": None, "verdict": "not tested"}
    rows = {default: closure} | {key: row for key, row in closure.get("points", {}).items() if key in points}
    out = {}
    for key, row in rows.items():
        text = "The injections have not been compared with lenses."
        if row.get("recall") is not None and row.get("predicted") is not None:
            lower, upper = row["interval"]
            text = (f"At {name_threshold(row.get('operating_point') or key)} the finder finds {row['recall']:.3f} of "
                    f"{row['n_lenses']} lenses it has never seen; the injections predict {row['predicted']:.3f} "
                    f"(95 % interval {lower:.3f} to {upper:.3f}).")  # fmt: skip
        closes = row["closes"] is True
        text += "" if closes else " Do not correct counts of lenses with this map."
        out[key] = {"closes": closes, "verdict": row["verdict"], "text": text}
    return out
