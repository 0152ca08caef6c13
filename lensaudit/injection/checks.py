"""Injection tables that can be rendered: what every column may hold, and one clear refusal when it does not."""

import numbers

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE

MAX_CLUMPS = 6
SOURCE_MODES = ("sersic", "clumpy", "bank", "point")
PARAMETERS = (
    "theta_E", "q", "phi", "gamma1", "gamma2", "source_x", "source_y", "source_R", "source_n", "source_q",
    "source_phi", "mag_source_g", "mag_source_r", "mag_source_z", "n_clumps", "psf_beta",
)  # fmt: skip
LIMITS = {
    "theta_E": (0.0, 10.0), "q": (0.05, 1.0), "gamma1": (-0.5, 0.5), "gamma2": (-0.5, 0.5), "source_R": (5e-3, 10.0),
    "source_n": (0.3, 6.0), "source_q": (0.05, 1.0), "n_clumps": (0, MAX_CLUMPS), "psf_beta": (1.1, 100.0),
    "clump_fraction": (0.0, 1.0),
    "slope": (1.2, 2.8), "a3": (-0.3, 0.3), "a4": (-0.3, 0.3), "phi3": (-100.0, 100.0), "phi4": (-100.0, 100.0),
    "subhalo_theta_E": (0.0, 1.0), "subhalo_x": (-9.0, 9.0), "subhalo_y": (-9.0, 9.0), "subhalo_r_cut": (1e-3, 10.0),
    "gradient": (-0.999, 0.999), "psf_e1": (-0.5, 0.5), "psf_e2": (-0.5, 0.5), "quasar_fraction_g": (0.0, 1.0),
    "quasar_fraction_r": (0.0, 1.0), "quasar_fraction_z": (0.0, 1.0), "bank_index": (-1.0, np.inf),
    "source_x": (-9.0, 9.0), "source_y": (-9.0, 9.0), "phi": (-100.0, 100.0), "source_phi": (-100.0, 100.0),
}  # fmt: skip
FLAGS = ("psf_wings", "inner_images")
COMPANIONS = {"a3": ("phi3",), "a4": ("phi4",), "subhalo_theta_E": ("subhalo_x", "subhalo_y", "subhalo_r_cut")}
FRACTIONS = tuple(f"quasar_fraction_{band}" for band in BANDS)


def check_table(table, hosts, bank=None):
    """Refuse rows that cannot be rendered, before any rendering, naming the first row's id.

    Parameters
    ----------
    table, hosts : pandas.DataFrame
    bank : lensing.sources.ImageBank, optional

    Raises
    ------
    UserError
        For a missing column, a value that is not a number, not finite or out of range, an id that is no whole number or
        stands twice, a source mode that the other columns do not serve, or an unknown or unusable host.
    """
    _require(table, "injection table", ("injection_id", "host_index", *PARAMETERS))
    _require(hosts, "host table", ("host_index", "galaxy_id", *(f"{name}_{band}" for band in BANDS for name in (
        "psfsize", "psfdepth", "mw_transmission"))))  # fmt: skip
    ids = _check_ids(table)
    for name in (*PARAMETERS, *(c for c in LIMITS if c in table and c not in PARAMETERS)):
        values = _read_numbers(table, name, "injection", ids)
        low, high = LIMITS.get(name, (-10.0, np.inf))
        bad = ~((values >= low) & (values <= high))
        if name in ("n_clumps", "bank_index"):
            bad |= values != np.floor(values)
        if bad.any():
            k = int(np.argmax(bad))
            kind = "not a whole number" if low <= values[k] <= high else f"outside [{low:g}, {high:g}]"
            raise UserError(f"injection {ids[k]}: {name} = {values[k]:g} is {kind}; drop it")
        lost = [c for c in COMPANIONS.get(name, ()) if c not in table]
        if lost and values.any():
            who = ids[int(np.argmax(values != 0))]
            raise UserError(f"injection {who}: {name} without column(s) {', '.join(lost)}; give them")
    for name in FLAGS:
        if name in table and table[name].dtype != bool:
            k = next((k for k, v in enumerate(table[name]) if not isinstance(v, (bool, np.bool_))), 0)
            raise UserError(f"injection {ids[k]}: column {name} holds {table[name].iloc[k]!r}; give True or False")
    _check_sources(table, ids, bank)
    _check_hosts(table, hosts, ids)


def _require(table, what, names):
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(f"{what} lacks column(s) {', '.join(missing)}")
    if not table.columns.is_unique:
        raise UserError(f"{what} has column {table.columns[table.columns.duplicated()][0]} twice; keep one")


def _check_ids(table):
    """Return the ids, whole numbers that streams can be keyed by, each once."""
    column = table["injection_id"]
    values = column.to_numpy()
    for k in np.flatnonzero(pd.isna(values)):
        raise UserError(f"injection table, row {k}: no injection_id; number the rows")
    whole = values >= 0 if values.dtype.kind in "iu" else np.array(
        [isinstance(v, numbers.Real) and type(v) not in (bool, np.bool_) and 0 <= v < 2**63 and v % 1 == 0
         for v in values], dtype=bool)  # fmt: skip
    if not whole.all():
        name = values[int(np.argmin(whole))]
        raise UserError(f"injection {name}: injection_id is not a whole number from 0 on; number the rows")
    if len(np.unique(values)) < len(values):
        raise UserError(f"injection {column[column.duplicated()].iloc[0]} appears twice; ids must be unique")
    return values


def _read_numbers(table, name, what, ids):
    """Return a column as float64, or refuse the first row that holds something else."""
    if table[name].dtype.kind in "iuf":
        return table[name].to_numpy(dtype=np.float64)
    for k, value in enumerate(table[name]):
        if not (value is None or isinstance(value, numbers.Real)) or type(value) in (bool, np.bool_):
            raise UserError(f"{what} {ids[k]}: {name} = {value!r} is not a number; give numbers")
    return table[name].to_numpy(dtype=np.float64)


def _check_sources(table, ids, bank):
    """Refuse modes that are unknown or lack what they need."""
    index = table["bank_index"].to_numpy() if "bank_index" in table else np.full(len(table), -1)
    n_images = 0 if bank is None else len(bank.half_light)
    if (index >= n_images).any():
        k = int(np.argmax(index >= n_images))
        raise UserError(f"injection {ids[k]}: bank_index = {index[k]:g}, but the bank given has {n_images} images")
    if "source_mode" not in table:
        return
    mode = table["source_mode"].to_numpy()
    points = sum((table[name].to_numpy() > 0 for name in FRACTIONS if name in table), np.zeros(len(table), dtype=bool))
    for wrong, reason in (
        (~np.isin(mode, SOURCE_MODES), f"unknown; use {', '.join(SOURCE_MODES)}"),
        ((mode == "clumpy") & (table["n_clumps"].to_numpy() == 0), "without clumps; set n_clumps"),
        ((mode == "bank") & (index < 0), "without an image; set bank_index"),
        ((mode == "point") & ~points, "without a point source; set quasar_fraction_g, _r, _z"),
    ):
        if wrong.any():
            k = int(np.argmax(wrong))
            raise UserError(f"injection {ids[k]}: source_mode {mode[k]!r} is {reason}")


def _check_hosts(table, hosts, ids):
    lost = ~table["host_index"].isin(hosts["host_index"]).to_numpy()
    if lost.any():
        k = int(np.argmax(lost))
        raise UserError(f"injection {ids[k]}: host_index {table['host_index'].iloc[k]} is not in the host table")
    used, names = hosts[hosts["host_index"].isin(table["host_index"])], ["host_index"]
    for band in BANDS:
        # Without an exposure time it is estimated, also from the number of visits.
        spent = f"exptime_{band}" if f"exptime_{band}" in hosts else f"nobs_{band}"
        for name, low, high in ((f"psfsize_{band}", 0.5, 0.5 * RENDER_SIZE * PIXEL_SCALE),
                                (f"psfdepth_{band}", 0.0, 1e12), (f"mw_transmission_{band}", 0.0, 1.0 + 1e-6),
                                (spent, 0.0, 1e9)):  # fmt: skip
            if name not in hosts:
                continue
            values = _read_numbers(used, name, "host", used["galaxy_id"].to_numpy())
            bad = ~((values > low) & (values <= high))
            if bad.any():
                k = int(np.argmax(bad))
                who = used["galaxy_id"].iloc[k]
                raise UserError(f"host {who}: {name} = {values[k]:g} is not usable; drop the host")
            names.append(name)
    kinds = used[names].drop_duplicates()["host_index"]
    if kinds.duplicated().any():
        who = kinds[kinds.duplicated()].iloc[0]
        raise UserError(f"host_index {who} stands twice in the host table, with different conditions; keep one")


def resolve_modes(table):
    """Return the table with the columns that its ``source_mode`` does not use switched off.

    Notes
    -----
    ``sersic``: a disc; ``clumpy``: disc and clumps; ``bank``: an image; ``point``: a point source in whatever disc and
    clumps the row has. Without the column, every column counts.
    """
    if "source_mode" not in table:
        return table
    mode = table["source_mode"].to_numpy()
    out = table.assign(n_clumps=np.where(np.isin(mode, ("clumpy", "point")), table["n_clumps"], 0))
    if "bank_index" in table:
        out["bank_index"] = np.where(mode == "bank", table["bank_index"], -1)
    for name in FRACTIONS:
        if name in table:
            out[name] = np.where(mode == "point", table[name], 0.0)
    return out
