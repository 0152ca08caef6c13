"""A bank of real galaxies as sources: stamps with explicit units, freed of their sky, of unit flux, ready to be lensed.

Read from catalogues of the kind GalSim's COSMOS sample has (a table of image file, HDU, pixel scale), from FITS images
and from NPZ files. The stamps keep the PSF and the noise of their telescope: at a half-light radius of a few tenths of
an arcsec the HST's 0.1 arcsec is a twentieth of the ground's seeing in area, but magnified it is not nothing.
"""

import contextlib
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import binary_dilation, gaussian_filter, label

from lensaudit.artifacts import UserError
from lensaudit.lensing.sources import ImageBank, make_image_bank
from lensaudit.photometry import brightness_to_pixel

# Units are compared in lower case, without blanks and without a final "/pixel".
COUNTS = ("count", "counts", "cps", "adu", "dn", "electron", "electrons", "e-")
FLUX_UNITS = ("flux", *COUNTS, *(f"{name}/s" for name in COUNTS), "nmgy", "nanomaggy", "njy", "ujy", "jy")
AREAS = ("/arcsec2", "/arcsec^2", "/arcsec**2", "arcsec-2")
CATALOGUE_COLUMNS = ("IDENT", "GAL_FILENAME", "GAL_HDU", "PIXEL_SCALE")
BORDER = 3  # pixels along the edge, from which the noise is measured
SMOOTHING, SKY_SIGMAS, WIDENING = 3.0, 2.0, 5  # pixels, noise of the smoothed image, pixels: see `isolate_galaxy`
# Pixels per half-light radius; stamps with more are brought to it. Against 20 the arcs of the COSMOS galaxies at 0.8
# arcsec seeing change by 0.5 per cent of the peak (median; 5 pixels: 1 per cent, and two to four times the speed).
RESOLUTION = 10.0
MIN_RESOLUTION = 2.0  # fewer pixels, and the stamp is a picture of its own PSF


@dataclass(frozen=True)
class GalaxyBank:
    """Galaxies to be lensed.

    Attributes
    ----------
    stamps : float32 ndarray of shape (K, S, S)
        Flux per pixel, total 1, the galaxy's centre within half a pixel of the middle; S odd.
    images : lensaudit.lensing.sources.ImageBank
        The same for `sources.make_components`.
    table : pandas.DataFrame
        name, flux (total in `unit`), unit, pixel_scale [arcsec, of `stamps`], half_light [arcsec], kept (share of the
        stamp's flux that is the galaxy's and not sky).
    """

    stamps: np.ndarray
    images: ImageBank
    table: pd.DataFrame


def to_surface_brightness(stamp, pixel_scale):
    """Convert flux per pixel to surface brightness [flux / arcsec^2]. The only place where stamps are converted.

    Parameters
    ----------
    stamp : ndarray
        Flux per pixel.
    pixel_scale : float
        arcsec.

    Notes
    -----
    lenstronomy's INTERPOL takes surface brightness; given flux per pixel its galaxies are 1 / pixel_scale^2 too faint,
    1,111 times at the 0.03 arcsec of HST stamps.
    """
    _check_scale(pixel_scale, "pixel_scale")
    return np.asarray(stamp) / brightness_to_pixel(1.0, pixel_scale)


def from_surface_brightness(brightness, pixel_scale):
    """Convert surface brightness [flux / arcsec^2] to flux per pixel; the inverse of `to_surface_brightness`."""
    _check_scale(pixel_scale, "pixel_scale")
    return brightness_to_pixel(np.asarray(brightness), pixel_scale)


def resample_image(image, step):
    """Bring an image to pixels `step` times as large, with its flux kept: each takes its share of every old one.

    Parameters
    ----------
    image : ndarray of shape (H, W)
        Flux per pixel.
    step : float
        Size of a new pixel in old ones.

    Returns
    -------
    ndarray
        Flux per pixel, covering the whole old image; both have the same middle, the sides are odd.
    """
    shares = []
    for length in np.shape(image):
        n = int(np.ceil(length / step - 1e-9)) // 2 * 2 + 1
        edges = 0.5 * length + (np.arange(n + 1) - 0.5 * n) * step
        # Column k: how much of old pixel k lies left of each edge.
        shares.append(np.diff(np.clip(edges[:, None] - np.arange(length), 0.0, 1.0), axis=0))
    return shares[0] @ np.asarray(image, dtype=np.float64) @ shares[1].T


def measure_centre(image):
    """Return column and row of the centre of light [pixel]."""
    rows, columns = np.indices(image.shape)
    total = image.sum()
    return np.array([(image * columns).sum() / total, (image * rows).sum() / total])


def measure_half_light(image, centre, n_sub=5):
    """Return the radius of the circle around `centre` that holds half of the flux [pixel].

    Parameters
    ----------
    image : ndarray of shape (H, W)
        Flux per pixel, no sky.
    centre : array_like of shape (2,)
        Column and row.
    n_sub : int
        Each pixel's flux is shared by n_sub x n_sub points.
    """
    steps = (np.arange(n_sub) + 0.5) / n_sub - 0.5
    y = (np.arange(image.shape[0])[:, None] + steps).ravel() - centre[1]
    x = (np.arange(image.shape[1])[:, None] + steps).ravel() - centre[0]
    radius = np.hypot(y[:, None], x[None]).ravel()
    flux = np.repeat(np.repeat(image, n_sub, 0), n_sub, 1).ravel() / n_sub**2
    order = np.argsort(radius, kind="stable")
    growth = np.cumsum(flux[order])
    return float(radius[order][np.searchsorted(np.maximum.accumulate(growth), 0.5 * growth[-1])])


def isolate_galaxy(image):
    """Return the image with everything but its brightest object set to zero, and the share of the flux that is left.

    Notes
    -----
    The object is the connected area, `SKY_SIGMAS` above the border's noise in the image smoothed by `SMOOTHING`, that
    holds the brightest smoothed pixel, widened by `WIDENING`. Otherwise the stamp's sky noise is lensed with the
    galaxy, and its edge is an arc of its own. Of the ten COSMOS galaxies of ``data_manifests/hst_cosmos_stamps.toml``
    nine keep 0.96 to 1.05 of their catalogued flux and half-light radius, the faintest and most diffuse 0.8.
    """
    smooth = gaussian_filter(image, SMOOTHING, mode="nearest")
    ring = np.ones(image.shape, dtype=bool)
    ring[BORDER:-BORDER, BORDER:-BORDER] = False
    noise = 1.4826 * np.median(np.abs(smooth[ring] - np.median(smooth[ring])))
    areas, _ = label(smooth > SKY_SIGMAS * noise)
    peak = np.unravel_index(np.argmax(np.where(ring, -np.inf, smooth)), image.shape)
    if areas[peak] == 0 or not image.sum() > 0:
        raise UserError("no galaxy above the stamp's noise")
    rows, columns = np.ogrid[-WIDENING : WIDENING + 1, -WIDENING : WIDENING + 1]
    wide = binary_dilation(areas == areas[peak], rows**2 + columns**2 <= WIDENING**2 + 1)
    out = image * wide * gaussian_filter(wide.astype(np.float64), 1.0, mode="nearest")
    return out, float(out.sum() / image.sum())


def prepare_stamp(image, unit, pixel_scale, name="stamp", resolution=RESOLUTION):
    """Make one stamp of the bank.

    Parameters
    ----------
    image : ndarray of shape (H, W)
    unit : str
        Of the pixels: one of `FLUX_UNITS` (per pixel), or one of them per arcsec^2.
    pixel_scale : float
        arcsec.
    name : str
        For messages.
    resolution : float
        Pixels per half-light radius kept at most.

    Returns
    -------
    dict
        stamp (float64, flux per pixel, total 1), centre [pixel], half_light [pixel], and the columns of
        `GalaxyBank.table`.

    Raises
    ------
    UserError
        For stamps without unit or pixel scale, not finite, empty, too small, or without a galaxy above the noise.
    """
    image = np.ma.filled(image.astype(np.float64), np.nan) if np.ma.isMaskedArray(image) else np.asarray(image)
    if image.ndim != 2 or min(image.shape) < 4 * BORDER:
        raise UserError(f"{name}: shape {image.shape}; a stamp is a plane of at least {4 * BORDER} pixels a side")
    if image.dtype.kind not in "fiu":
        raise UserError(f"{name}: pixels of type {image.dtype}; a stamp holds real numbers")
    per_area, unit = _read_unit(unit, name)
    _check_scale(pixel_scale, name)
    if not resolution >= MIN_RESOLUTION:
        raise UserError(f"{name}: resolution = {resolution}; give {MIN_RESOLUTION:g} pixels or more")
    image = image.astype(np.float64)
    bad = int((~np.isfinite(image)).sum())
    if bad:
        raise UserError(f"{name}: {bad} pixels are not finite; mask and fill them, or leave the galaxy out")
    if not image.any():
        raise UserError(f"{name}: every pixel is zero; leave the galaxy out")
    if per_area:
        image = from_surface_brightness(image, pixel_scale)
    try:
        galaxy, kept = isolate_galaxy(image)
    except UserError as error:
        raise UserError(f"{name}: {error}; leave the galaxy out") from None
    flux, scale = float(galaxy.sum()), float(pixel_scale)
    if not flux > 0:
        raise UserError(f"{name}: its flux is {flux:g}; leave the galaxy out")
    half_light = measure_half_light(galaxy, measure_centre(galaxy))
    if half_light < MIN_RESOLUTION:
        raise UserError(f"{name}: half-light radius of {half_light:.1f} pixels; a source needs {MIN_RESOLUTION:g}")
    if half_light > resolution:
        step = half_light / resolution
        galaxy, scale = resample_image(galaxy, step), scale * step
    galaxy = galaxy / galaxy.sum()
    centre = measure_centre(galaxy)
    half_light = measure_half_light(galaxy, centre)
    return {"stamp": galaxy, "centre": centre, "half_light_pixels": half_light, "name": str(name), "flux": flux,
            "unit": unit, "pixel_scale": scale, "half_light": half_light * scale, "kept": kept}  # fmt: skip


def make_bank(images, units, pixel_scales, names=None, resolution=RESOLUTION):
    """Make a bank of images in memory; parameters are sequences of those of `prepare_stamp`."""
    names = [f"stamp {k}" for k in range(len(images))] if names is None else names
    if len(images) == 0:
        raise UserError("the bank of galaxy stamps is empty; give at least one")
    together = zip(images, units, pixel_scales, names, strict=True)
    return _join_stamps([prepare_stamp(*one, resolution=resolution) for one in together])


def _join_stamps(rows):
    # Moved by whole pixels, so that nothing is smoothed; what is left of the centre stands in its coordinates.
    corners = [np.round(row["centre"]).astype(int) for row in rows]
    half = max(max(*c, *(np.array(row["stamp"].shape[::-1]) - 1 - c)) for c, row in zip(corners, rows, strict=True))
    stamps, centres = np.zeros((len(rows), 2 * half + 1, 2 * half + 1), dtype=np.float32), np.zeros((len(rows), 2))
    for k, (corner, row) in enumerate(zip(corners, rows, strict=True)):
        (left, top), (height, width) = half - corner, row["stamp"].shape
        stamps[k, top : top + height, left : left + width] = row["stamp"]
        centres[k] = row["centre"] + (left, top)
    columns = ("name", "flux", "unit", "pixel_scale", "half_light", "kept")
    table = pd.DataFrame({c: [row[c] for row in rows] for c in columns})
    return GalaxyBank(stamps, make_image_bank(stamps, centres, [row["half_light_pixels"] for row in rows]), table)


def read_catalogue(path, unit=None, resolution=RESOLUTION, limit=None):
    """Read a catalogue of stamps of the GalSim COSMOS kind.

    Parameters
    ----------
    path : path
        FITS table with IDENT, GAL_FILENAME, GAL_HDU and PIXEL_SCALE [arcsec]; the images lie beside it.
    unit : str, optional
        Of the pixels, for images whose headers have no BUNIT. Those of the COSMOS sample have none: "count/s".
    resolution : float
    limit : int, optional
        Rows read at most, from the first.

    Returns
    -------
    GalaxyBank
        Named by IDENT, in the catalogue's order.
    """
    from astropy.table import Table

    path = Path(path)
    with _clear_errors(path):
        catalogue = Table.read(path, hdu=1, format="fits")
    missing = [c for c in CATALOGUE_COLUMNS if c not in catalogue.colnames]
    if missing:
        raise UserError(f"{path.name}: column(s) {', '.join(missing)} missing; a catalogue of stamps has them")
    catalogue = catalogue[: len(catalogue) if limit is None else max(limit, 0)]
    names = [str(r["IDENT"]).strip() for r in catalogue]
    numbers = np.nan_to_num(np.ma.filled(catalogue["GAL_HDU"], -1), nan=-1.0)
    keys = [(str(file).strip(), int(k)) for file, k in zip(catalogue["GAL_FILENAME"], numbers, strict=True)]
    for k, key in enumerate(keys):
        if key in keys[:k]:
            first, other = names[keys.index(key)], names[k]
            raise UserError(f"{path.name}: {first} and {other} both name HDU {key[1]} of {key[0]}; correct GAL_HDU")
    planes = {}
    for file in sorted({key[0] for key in keys}):
        planes |= {(file, hdu): (image, own_unit) for hdu, image, own_unit, _ in _read_planes(path.parent / file)}
    rows = []
    for key, name, scale in zip(keys, names, catalogue["PIXEL_SCALE"], strict=True):
        if key not in planes:
            raise UserError(f"{path.name}: {name} is to be in HDU {key[1]} of {key[0]}, which holds no image")
        image, header_unit = planes[key]
        _check_scale(np.ma.filled(scale, np.nan), f"{path.name}: {name}")
        scale = round(float(scale), 7)  # catalogues store it as float32; 0.03 is meant
        rows.append(prepare_stamp(image, unit or header_unit, scale, f"{path.name}: {name}", resolution))
        rows[-1]["name"] = name
    if not rows:
        raise UserError(f"{path.name}: no rows; the bank of galaxy stamps would be empty")
    return _join_stamps(rows)


def read_stamps(path, unit=None, pixel_scale=None, resolution=RESOLUTION):
    """Read stamps from a FITS file (every HDU with a plane) or an NPZ file.

    Parameters
    ----------
    path : path
        FITS with BUNIT and a WCS or PIXSCALE [arcsec]; or NPZ with ``stamps`` (K, H, W) or (H, W), ``unit`` and
        ``pixel_scale`` [arcsec], one or K.
    unit : str, optional
    pixel_scale : float, optional
        arcsec. Both for files that do not say; what is given here counts.

    Returns
    -------
    GalaxyBank
    """
    path = Path(path)
    found = _read_npz(path) if path.suffix == ".npz" else _read_planes(path)
    if not found:
        raise UserError(f"{path.name}: no image in it; give a file with stamps")
    rows = []
    for k, image, own_unit, own_scale in found:
        scale = own_scale if pixel_scale is None else pixel_scale
        rows.append(prepare_stamp(image, unit or own_unit, scale, f"{path.name}[{k}]", resolution))
    return _join_stamps(rows)


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file in {path.parent}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name}: unreadable NPZ ({error}); write it with np.savez, without objects") from None
    if "stamps" not in content:
        raise UserError(f"{path.name}: array stamps missing; it has {', '.join(content) or 'nothing'}")
    stamps = content["stamps"]
    if stamps.ndim not in (2, 3):
        raise UserError(f"{path.name}: stamps of shape {stamps.shape}; they are (K, H, W) or (H, W)")
    stamps, unit = stamps.reshape(-1, *stamps.shape[-2:]), str(content["unit"]) if "unit" in content else None
    scales = content.get("pixel_scale", np.array(None))
    if scales.size not in (1, len(stamps)):
        raise UserError(f"{path.name}: {scales.size} pixel scales for {len(stamps)} stamps; give one or as many")
    each = zip(range(len(stamps)), stamps, np.broadcast_to(scales, len(stamps)), strict=True)
    return [(k, image, unit, scale) for k, image, scale in each]


def _read_planes(path):
    """Return number, image, unit and pixel scale [arcsec] (None where not said) of every HDU with a plane."""
    from astropy.io import fits

    planes = []
    with _clear_errors(path), fits.open(path, memmap=False) as hdus:
        for k, hdu in enumerate(hdus):
            if hdu.is_image and hdu.header.get("NAXIS") == 2:
                planes.append((k, hdu.data, hdu.header.get("BUNIT"), _read_scale(hdu.header)))
    return planes


def _read_scale(header):
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    if "PIXSCALE" in header:
        return header["PIXSCALE"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wcs = WCS(header)
    return float(np.mean(proj_plane_pixel_scales(wcs))) * 3600.0 if wcs.has_celestial else None


@contextlib.contextmanager
def _clear_errors(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy warns of a cut file and then fails; one message is enough
            yield
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file in {path.parent}") from None
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path.name}: unreadable FITS ({error}); fetch the file again") from None


def _read_unit(unit, name):
    """Return if the pixels are surface brightness, and the unit of the flux."""
    if unit is None or not str(unit).strip():
        raise UserError(f"{name}: no unit; give unit= (count/s for HST COSMOS stamps) or BUNIT in the header")
    flux = str(unit).lower().replace(" ", "").removesuffix("/pixel").removesuffix("/pix")
    per_area = flux.endswith(AREAS)
    for area in AREAS:
        flux = flux.removesuffix(area)
    if flux not in FLUX_UNITS:
        known = ", ".join(FLUX_UNITS)
        raise UserError(f"{name}: unit '{unit}' is not known; use one of {known}, per pixel or with /arcsec2")
    return per_area, flux


def _check_scale(pixel_scale, name):
    if pixel_scale is None:
        raise UserError(f"{name}: no pixel scale; give pixel_scale= in arcsec, or PIXSCALE or a WCS in the header")
    try:
        value = float(pixel_scale)
    except (TypeError, ValueError):
        value = np.nan
    if not 1e-4 <= value <= 10.0:
        raise UserError(f"{name}: pixel scale of {pixel_scale}; it is in arcsec, between 0.0001 and 10")
