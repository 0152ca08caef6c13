"""Sweep and Tractor tables of DR8, DR9 and DR10 as one survey table in native byte order.

Start with `read_sweep` for one file, `read_sweeps` for many. FITS tables are memory-mapped and only the columns the
audit uses are converted, so the cost is that of those columns.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, ZERO_POINT

_PER_BAND = ("flux", "flux_ivar", "mw_transmission", "nobs", "psfsize", "psfdepth", "galdepth", "fracflux", "fracin")
# Survey columns and the kind of number each must hold: i integer, f float, s text. Flux is in nMgy, ivar and depth in
# nMgy^-2, psfsize and shape_r in arcsec.
COLUMNS = (
    {"release": "i", "brickid": "i", "brickname": "s", "objid": "i", "type": "s", "ra": "f", "dec": "f", "ebv": "f"}
    | {f"{name}_{band}": "i" if name == "nobs" else "f" for name in _PER_BAND for band in BANDS}
    | {"flux_w1": "f", "maskbits": "i", "fitbits": "i"}
    | {"shape_r": "f", "shape_e1": "f", "shape_e2": "f", "sersic": "f"}
)  # fmt: skip
OPTIONAL = ("flux_w1", "fitbits", *(f"{name}_{band}" for name in ("fracflux", "fracin") for band in BANDS))
REQUIRED = tuple(name for name in COLUMNS if name not in OPTIONAL)
UNITS = {"ra": "deg", "dec": "deg", "ebv": "mag", "shape_r": "arcsec", "flux_w1": "nMgy", "depth_r": "mag"} | {
    f"{name}_{band}": unit
    for name, unit in (("flux", "nMgy"), ("flux_ivar", "nMgy^-2"), ("psfsize", "arcsec"), ("psfdepth", "nMgy^-2"),
                       ("galdepth", "nMgy^-2"), ("mag", "mag"))
    for band in BANDS
}  # fmt: skip
_KINDS = {"i": "iu", "f": "f", "s": "SUO"}


def read_sweep(path, require=REQUIRED):
    """Read one sweep or Tractor table.

    Parameters
    ----------
    path : path
        FITS table in the DR8, DR9 or DR10 dialect, or Parquet with the same columns.
    require : sequence of str
        Survey columns (lower case) the caller cannot do without.

    Returns
    -------
    pandas.DataFrame
        galaxy_id (``release-brickid-objid``), `COLUMNS`, sweep_file, row_index, mag_g, mag_r, mag_z (AB, NaN where
        the flux is not positive, not corrected for extinction) and depth_r (5-sigma point-source AB magnitude).
        Columns the file lacks are NaN (integers -1, text empty) and named in ``attrs["missing"]``.

    Raises
    ------
    UserError
        When the file is not a readable table, is truncated, lacks a required column or holds one of the wrong kind.

    Notes
    -----
    DR8 has no SHAPE_R and SERSIC: they are taken from SHAPEDEV or SHAPEEXP by TYPE, with index 4 or 1. DR8 has no
    PSFSIZE either; nothing in it can stand for that. TYPE is padded with blanks before DR10 and is returned stripped.
    """
    path = Path(path)
    columns = _read_parquet(path) if path.suffix == ".parquet" else _read_fits(path)
    columns |= _derive_shapes(columns)
    missing = [name for name in COLUMNS if name not in columns]
    absent = sorted(set(require) - set(columns))
    if absent:
        names = ", ".join(name.upper() for name in absent)
        raise UserError(f"{path.name}: column(s) {names} missing; give a DR9 or DR10 table, or require fewer columns")
    n = len(next(iter(columns.values()))) if columns else 0
    table = {}
    for name, kind in COLUMNS.items():
        table[name] = _convert(columns[name], kind, name, path.name) if name in columns else _fill(kind, n)
    frame = pd.DataFrame(table)
    ids = [f"{r}-{b}-{o}" for r, b, o in zip(table["release"].tolist(), table["brickid"].tolist(),
                                             table["objid"].tolist(), strict=True)]
    frame.insert(0, "galaxy_id", pd.array(ids, dtype=pd.StringDtype("pyarrow", na_value=np.nan)))
    frame["sweep_file"], frame["row_index"] = path.name, np.arange(n, dtype=np.int64)
    frame["sweep_file"] = frame["sweep_file"].astype(frame["galaxy_id"].dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        for band in BANDS:
            flux = table[f"flux_{band}"].astype(float)
            frame[f"mag_{band}"] = ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        depth = table["psfdepth_r"].astype(float)
        frame["depth_r"] = ZERO_POINT - 2.5 * np.log10(5 / np.sqrt(np.where(depth > 0, depth, np.nan)))
    frame.attrs["missing"] = missing
    return frame


def _read_fits(path):
    """Return the needed columns of the first table as big-endian views of the mapped file."""
    try:
        with warnings.catch_warnings(action="ignore", category=AstropyUserWarning), fits.open(path) as file:
            hdu = next((h for h in file if isinstance(h, fits.BinTableHDU)), None)
            if hdu is None:
                raise UserError(f"{path.name}: holds no FITS table; give a sweep or Tractor file")
            names = {name.lower(): name for name in hdu.columns.names}
            # astropy gives the record's layout in native order; the file is big-endian
            dtype = hdu.columns.dtype.newbyteorder(">")
            rows, start = hdu.header["NAXIS2"], hdu.fileinfo()["datLoc"]
            scaled = {c.name for c in hdu.columns if c.bscale not in ("", None, 1) or c.bzero not in ("", None, 0)}
            if path.stat().st_size < start + rows * hdu.header["NAXIS1"]:
                raise UserError(f"{path.name}: truncated, its header promises {rows} rows; fetch the file again")
    except (OSError, KeyError, TypeError, ValueError, EOFError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path.name}: not a readable FITS table ({reason}); fetch the file again") from None
    wanted = {low: name for low, name in names.items() if low in COLUMNS or low.startswith(("shapedev_", "shapeexp_"))}
    bad = sorted(scaled & set(wanted.values()))
    if bad:
        raise UserError(f"{path.name}: column(s) {', '.join(bad)} are scaled (TSCAL/TZERO); sweeps store plain numbers")
    data = np.memmap(path, dtype=dtype, mode="r", offset=start, shape=(rows,)) if rows else np.empty(0, dtype)
    return {low: data[name] for low, name in wanted.items()}


def _read_parquet(path):
    try:
        names = {name.lower(): name for name in pq.read_schema(path).names}
        wanted = {low: name for low, name in names.items() if low in COLUMNS}
        table = pq.read_table(path, columns=list(wanted.values()))
        return {low: table[name].to_numpy() for low, name in wanted.items()}
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path.name}: not a readable Parquet table ({reason}); fetch the file again") from None


def _derive_shapes(columns):
    """Return shape and Sersic columns from the DR8 pairs, by TYPE; nothing when the file has its own."""
    if "shape_r" in columns or not {"type", "shapedev_r", "shapeexp_r"} <= set(columns):
        return {}
    kind = np.char.strip(np.asarray(columns["type"]).astype(str))
    disc = np.isin(kind, ["EXP", "REX", "SIMP", "COMP"])
    derived = {}
    for name in ("r", "e1", "e2"):
        pair = columns[f"shapedev_{name}"], columns[f"shapeexp_{name}"]
        derived[f"shape_{name}"] = np.select([kind == "DEV", disc], pair, 0.0)
    return derived | {"sersic": np.select([kind == "DEV", disc], [4.0, 1.0], 0.0)}


def _convert(values, kind, name, file):
    """Return a column in native byte order; text decoded and stripped."""
    values = np.asarray(values)
    if values.dtype.kind not in _KINDS[kind]:
        word = {"i": "integers", "f": "floats", "s": "text"}[kind]
        raise UserError(f"{file}: column {name.upper()} holds {values.dtype.name}, not {word}; check the file's origin")
    if kind == "s":
        text = values.astype(str) if values.dtype.kind == "S" else values.astype("U")
        return pd.array(np.char.strip(text, " \0").tolist(), dtype=pd.StringDtype("pyarrow", na_value=np.nan))
    if kind == "i":
        return values.astype(np.int32 if name == "maskbits" else values.dtype.newbyteorder("="))
    return values.astype(values.dtype.newbyteorder("="))


def _fill(kind, n):
    if kind == "s":
        return pd.array([""] * n, dtype=pd.StringDtype("pyarrow", na_value=np.nan))
    return np.full(n, -1, np.int64) if kind == "i" else np.full(n, np.nan, np.float32)


def read_sweeps(paths, require=REQUIRED):
    """Read many sweep files into one survey table, in the order of the paths.

    Raises
    ------
    UserError
        As `read_sweep`; also when no path is given, or an object occurs in two files.
    """
    paths = [Path(p) for p in paths]
    if not paths:
        raise UserError("no sweep file given; make the survey first, or point the data root at a folder with sweeps")
    table = pd.concat([read_sweep(path, require) for path in paths], ignore_index=True)
    repeated = table["galaxy_id"].duplicated()
    if repeated.any():
        row = table[repeated].iloc[0]
        raise UserError(f"{row['sweep_file']}: object {row['galaxy_id']} occurs twice; give each sweep file once")
    return table


def join_survey(galaxies, photoz, footprint):
    """Add photometric redshift and footprint weight to a survey table by galaxy_id.

    Parameters
    ----------
    galaxies : pandas.DataFrame
        From `read_sweeps`.
    photoz : pandas.DataFrame
        galaxy_id, z_phot.
    footprint : pandas.DataFrame
        galaxy_id, footprint_weight, quarter.

    Returns
    -------
    pandas.DataFrame
        `galaxies` with z_phot (NaN when unknown), footprint_weight (1 when unknown) and quarter (-1 when unknown).
    """
    table = galaxies.merge(photoz[["galaxy_id", "z_phot"]], on="galaxy_id", how="left", validate="1:1")
    table = table.merge(footprint[["galaxy_id", "footprint_weight", "quarter"]], on="galaxy_id", how="left",
                        validate="1:1")
    table["footprint_weight"] = table["footprint_weight"].fillna(1.0).astype(float)
    return table.assign(quarter=table["quarter"].fillna(-1).astype(np.int64))
