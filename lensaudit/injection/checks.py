"""Injection tables that can be rendered: what every column may hold, and one clear refusal when it does not."""

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
        For a missing column, a value that is not finite or out of range, an id that stands twice, a source mode that
        the other columns do not serve, or an unknown or unusable host.
    """
    _require(table, "injection table", ("injection_id", "host_index", *PARAMETERS))
    _require(hosts, "host table", ("host_index", "galaxy_id", *(f"{name}_{band}" for band in BANDS for name in (
        "psfsize", "psfdepth", "mw_transmission"))))  # fmt: skip
    ids = table["injection_id"].to_numpy()
    if pd.isna(ids).any():
        raise UserError(f"injection table, row {int(np.argmax(pd.isna(ids)))}: no injection_id; number the rows")
    if len(np.unique(ids)) < len(ids):
        twice = table["injection_id"][table["injection_id"].duplicated()].iloc[0]
        raise UserError(f"injection {twice} appears twice; ids must be unique")
    for name in (*PARAMETERS, *(c for c in LIMITS if c in table and c not in PARAMETERS)):
        values = _read_numbers(table, name)
        low, high = LIMITS.get(name, (-10.0, np.inf))
        bad = ~((values >= low) & (values <= high))
        if name in ("n_clumps", "bank_index"):
            bad |= values != np.floor(values)
        if bad.any():
            k = int(np.argmax(bad))
            kind = "not a whole number" if low <= values[k] <= high else f"outside [{low:g}, {high:g}]"
            raise UserError(f"injection {ids[k]}: {name} = {values[k]:g} is {kind}; drop it")
    for name in FLAGS:
        if name in table and table[name].dtype != bool:
            raise UserError(f"injection {ids[0]}: column {name} holds {table[name].iloc[0]!r}; give True or False")
    _check_sources(table, ids, bank)
    _check_hosts(table, hosts, ids)


def _require(table, what, names):
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(f"{what} lacks column(s) {', '.join(missing)}")


def _read_numbers(table, name):
    try:
        return table[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"injection table: column {name} holds text or nothing; give numbers") from None


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
    used = hosts["host_index"].isin(table["host_index"]).to_numpy()
    for band in BANDS:
        for name, low, high in ((f"psfsize_{band}", 0.5, 0.5 * RENDER_SIZE * PIXEL_SCALE),
                                (f"psfdepth_{band}", 0.0, np.inf), (f"mw_transmission_{band}", 0.0, 1.0 + 1e-6),
                                (f"exptime_{band}", 0.0, 1e9)):  # fmt: skip
            if name not in hosts:  # the exposure time is then estimated
                continue
            values = hosts[name].to_numpy(dtype=np.float64)
            bad = ~((values > low) & (values <= high)) & used
            if bad.any():
                k = int(np.argmax(bad))
                who = hosts["galaxy_id"].iloc[k]
                raise UserError(f"host {who}: {name} = {values[k]:g} is not usable; drop the host")


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
