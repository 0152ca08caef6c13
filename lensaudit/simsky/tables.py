"""What the survey would publish of the simulated sky: sweep files in the DR10 schema and their columns."""

import numpy as np
from astropy.io import fits
from astropy.table import Table
from scipy.spatial import cKDTree

from lensaudit.artifacts import write_atomic
from lensaudit.simsky.physics import BANDS, transmission

RELEASE = 10000
_ALL = ("g", "r", "i", "z")
# Columns of the DR10 sweeps in order with their dtypes, from the survey's documentation of the sweep catalogues.
SCHEMA = (
    [("RELEASE", "i2"), ("BRICKID", "i4"), ("BRICKNAME", "S8"), ("OBJID", "i4"), ("TYPE", "S3"), ("RA", "f8"),
     ("DEC", "f8"), ("RA_IVAR", "f4"), ("DEC_IVAR", "f4"), ("DCHISQ", "5f4"), ("EBV", "f4")]
    + [(f"FLUX_{b}", "f4") for b in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")]
    + [(f"FLUX_IVAR_{b}", "f4") for b in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")]
    + [(f"MW_TRANSMISSION_{b}", "f4") for b in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")]
    + [(f"NOBS_{b}", "i2") for b in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")]
    + [(f"{name}_{b}", "f4") for name in ("RCHISQ", "FRACFLUX", "FRACMASKED", "FRACIN") for b in ("G", "R", "I", "Z")]
    + [(f"{name}_{b}", "i2") for name in ("ANYMASK", "ALLMASK") for b in ("G", "R", "I", "Z")]
    + [("WISEMASK_W1", "u1"), ("WISEMASK_W2", "u1")]
    + [(f"{name}_{b}", "f4") for name in ("PSFSIZE", "PSFDEPTH", "GALDEPTH") for b in ("G", "R", "I", "Z")]
    + [("PSFDEPTH_W1", "f4"), ("PSFDEPTH_W2", "f4")]
    + [("SHAPE_R", "f4"), ("SHAPE_R_IVAR", "f4"), ("SHAPE_E1", "f4"), ("SHAPE_E1_IVAR", "f4"), ("SHAPE_E2", "f4"),
       ("SHAPE_E2_IVAR", "f4")]
    + [(f"{name}_{b}", "f4") for name in ("FIBERFLUX", "FIBERTOTFLUX") for b in ("G", "R", "I", "Z")]
    + [("REF_CAT", "S2"), ("REF_ID", "i8"), ("REF_EPOCH", "f4"), ("GAIA_PHOT_G_MEAN_MAG", "f4"),
       ("GAIA_PHOT_G_MEAN_FLUX_OVER_ERROR", "f4"), ("GAIA_PHOT_BP_MEAN_MAG", "f4"),
       ("GAIA_PHOT_BP_MEAN_FLUX_OVER_ERROR", "f4"), ("GAIA_PHOT_RP_MEAN_MAG", "f4"),
       ("GAIA_PHOT_RP_MEAN_FLUX_OVER_ERROR", "f4"), ("GAIA_ASTROMETRIC_EXCESS_NOISE", "f4"),
       ("GAIA_DUPLICATED_SOURCE", "?"), ("GAIA_PHOT_BP_RP_EXCESS_FACTOR", "f4"),
       ("GAIA_ASTROMETRIC_SIGMA5D_MAX", "f4"), ("GAIA_ASTROMETRIC_PARAMS_SOLVED", "u1"), ("PARALLAX", "f4"),
       ("PARALLAX_IVAR", "f4"), ("PMRA", "f4"), ("PMRA_IVAR", "f4"), ("PMDEC", "f4"), ("PMDEC_IVAR", "f4"),
       ("MASKBITS", "i4"), ("FITBITS", "i2"), ("SERSIC", "f4"), ("SERSIC_IVAR", "f4")]
)  # fmt: skip
BIT_BRIGHT, BIT_SATUR, BIT_ALLMASK, BIT_MEDIUM, BIT_GALAXY = 1, (2, 3, 4), (5, 6, 7), 11, 12
FITBIT_BRIGHT_NEIGHBOUR = 1 << 3  # a fit influenced by the mask of a neighbour


def measure_catalogue(rng, truth, quarters, quarter_row):
    """Measure what the survey's catalogue says of each object: fluxes with errors, shapes, conditions.

    Parameters
    ----------
    rng : numpy.random.Generator
    truth : pandas.DataFrame
        Rows of the truth table with ra, dec, flux_*, R, q, pa, n_sersic, type, ebv, brickid, brickname, objid.
    quarters : pandas.DataFrame
        From `conditions.draw_quarters`.
    quarter_row : ndarray of int
        Row of `quarters` for each object.

    Returns
    -------
    dict of column name -> ndarray
        The columns of `SCHEMA` that are not constant.
    """
    n, columns = len(truth), {}
    kind, size = truth["type"].to_numpy().astype("S3"), truth["R"].to_numpy()
    point = truth["type"].to_numpy() == "PSF"
    for band in BANDS:
        up, flux = band.upper(), truth[f"flux_{band}"].to_numpy()
        near = {
            k: quarters[f"{k}_{band}"].to_numpy()[quarter_row]
            for k in ("psfsize", "psfdepth", "galdepth", "n_exposures")
        }
        scatter = np.exp(rng.normal(0, 0.03, n))
        columns[f"PSFSIZE_{up}"] = near["psfsize"] * np.exp(rng.normal(0, 0.008, n))
        columns[f"PSFDEPTH_{up}"] = near["psfdepth"] * scatter
        columns[f"GALDEPTH_{up}"] = near["galdepth"] * scatter
        columns[f"NOBS_{up}"] = near["n_exposures"]
        blur = np.where(point, 0.0, size / 0.85)
        ivar = near["psfdepth"] / (1.0 + (blur * 2.0 / near["psfsize"]) ** 2)
        columns[f"FLUX_{up}"] = flux + rng.normal(size=n) * np.hypot(1.0 / np.sqrt(ivar), 0.005 * flux)
        columns[f"FLUX_IVAR_{up}"] = ivar
        columns[f"MW_TRANSMISSION_{up}"] = transmission(truth["ebv"], band)
        columns[f"RCHISQ_{up}"] = np.abs(1.0 + rng.normal(0, 0.1, n))
        columns[f"FIBERFLUX_{up}"] = flux * (1 - np.exp(-0.6 / np.maximum(blur, 0.3)))
        columns[f"FIBERTOTFLUX_{up}"] = columns[f"FIBERFLUX_{up}"]
        columns[f"FRACIN_{up}"] = np.where(rng.random(n) < 0.01, rng.uniform(0.2, 0.9, n), 1.0)
    columns |= _measure_shapes(rng, truth, kind, point)
    columns["FLUX_W1"] = truth["flux_w1"].to_numpy()
    columns["FLUX_IVAR_W1"] = np.full(n, 4.0)
    columns |= {
        "RA": truth["ra"],
        "DEC": truth["dec"],
        "EBV": truth["ebv"],
        "TYPE": kind,
        "BRICKID": truth["brickid"],
        "BRICKNAME": truth["brickname"].to_numpy().astype("S8"),
        "OBJID": truth["objid"],
        "RA_IVAR": np.full(n, 1e15),
        "DEC_IVAR": np.full(n, 1e15),
        "RELEASE": np.full(n, RELEASE),
    }
    return {name: np.asarray(values) for name, values in columns.items()}


def _measure_shapes(rng, truth, kind, point):
    n, columns, size = len(truth), {}, truth["R"].to_numpy()
    e = np.where(point | (kind == b"REX"), 0.0, (1 - truth["q"]) / (1 + truth["q"]))
    angle = 2 * truth["pa"].to_numpy()
    # The survey counts angles from north to east; the image has north up and east left, hence both signs turn.
    columns["SHAPE_E1"] = np.where(e > 0, -e * np.cos(angle) + rng.normal(0, 0.01, n), 0.0)
    columns["SHAPE_E2"] = np.where(e > 0, -e * np.sin(angle) + rng.normal(0, 0.01, n), 0.0)
    columns["SHAPE_R"] = np.where(point, 0.0, size * np.exp(rng.normal(0, 0.03, n)))
    columns["SERSIC"] = np.select([point, kind == b"SER"], [0.0, truth["n_sersic"]], np.where(kind == b"DEV", 4.0, 1.0))
    return columns


def add_neighbours(columns, truth):
    """Fill FRACFLUX from neighbours within 8 arcsec and flag fits that a bright neighbour influenced, in place."""
    tree = cKDTree(unit_vectors(truth["ra"], truth["dec"]))
    pairs = tree.query_pairs(np.radians(8.0 / 3600.0), output_type="ndarray").reshape(-1, 2)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    separation = np.degrees(np.linalg.norm(tree.data[pairs[:, 0]] - tree.data[pairs[:, 1]], axis=1)) * 3600.0
    fitbits = np.zeros(len(truth), dtype=np.int16)
    for band in BANDS:
        flux = np.maximum(truth[f"flux_{band}"].to_numpy(), 1e-4)
        fraction = np.zeros(len(truth))
        np.add.at(fraction, pairs[:, 0], flux[pairs[:, 1]] / flux[pairs[:, 0]] * np.exp(-((separation / 2.0) ** 1.5)))
        columns[f"FRACFLUX_{band.upper()}"] = fraction
        fitbits[fraction > 0.3] |= FITBIT_BRIGHT_NEIGHBOUR
    columns["FITBITS"] = fitbits


def add_masks(rng, columns, truth, stars):
    """Set MASKBITS from bright stars, large galaxies and lost exposures, in place.

    Notes
    -----
    Radii follow the survey since DR9, 1630 * 1.396**-G arcsec for G < 16 (MEDIUM), and half of it for G < 13 (BRIGHT).
    """
    bits = np.zeros(len(truth), dtype=np.int32)
    tree = cKDTree(unit_vectors(truth["ra"], truth["dec"]))
    centres = unit_vectors(stars["ra"], stars["dec"])
    radius = 1630.0 * 1.396 ** -stars["mag"].to_numpy()
    for flag, limit, share in ((BIT_MEDIUM, 16.0, 1.0), (BIT_BRIGHT, 13.0, 0.5)):
        chosen = np.flatnonzero(stars["mag"].to_numpy() < limit)
        found = tree.query_ball_point(centres[chosen], np.radians(share * radius[chosen] / 3600.0))
        for rows in found:
            bits[rows] |= 1 << flag
    for flag in (*BIT_SATUR, *BIT_ALLMASK):
        bits[rng.random(len(truth)) < 0.0015] |= 1 << flag
    bits[rng.random(len(truth)) < 0.002] |= 1 << BIT_GALAXY
    for band, flag in zip(BANDS, BIT_ALLMASK, strict=True):
        columns[f"ALLMASK_{band.upper()}"] = (bits >> flag & 1).astype(np.int16)
        columns[f"ANYMASK_{band.upper()}"] = columns[f"ALLMASK_{band.upper()}"]
    columns["MASKBITS"] = bits


def unit_vectors(ra, dec):
    """Unit vectors of positions in degrees, shape (N, 3)."""
    ra, dec = np.radians(np.asarray(ra)), np.radians(np.asarray(dec))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def write_sweeps(stage, columns, names):
    """Write one FITS file per sweep box in the exact DR10 schema.

    Parameters
    ----------
    stage : Stage
    columns : dict of column name -> ndarray of shape (n,)
    names : ndarray of str, shape (n,)
        Sweep file of each object.
    """
    primary, header = _make_headers()
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        data = np.zeros(len(rows), dtype=[(c, *_big_endian(t)) for c, t in SCHEMA])
        data["MW_TRANSMISSION_I"] = 1.0
        data["GAIA_DUPLICATED_SOURCE"] = b"F"
        for column, values in columns.items():
            data[column] = values[rows]
        header["NAXIS2"] = len(rows)
        content = primary + header.tostring().encode() + data.tobytes()
        with write_atomic(stage.output(f"sweep/{name}")) as temporary:
            temporary.write_bytes(content + b"\0" * (-len(content) % 2880))


def _big_endian(dtype):
    # FITS stores big-endian numbers and truth values as the letters T and F.
    if dtype == "5f4":
        return ">f4", (5,)
    return ("S1",) if dtype == "?" else (">" + dtype if dtype[0] in "if" else dtype,)


def _make_headers():
    # Headers of an empty table with this schema; a file then needs its row count and bytes only (astropy takes 0.2 s).
    hdu = fits.BinTableHDU(Table(np.zeros(0, dtype=SCHEMA)))
    hdu.header["EXTNAME"] = "SWEEP"
    return fits.PrimaryHDU().header.tostring().encode(), hdu.header
