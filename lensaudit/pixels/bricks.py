"""Stamps cut from a folder of coadd bricks, about a hundred times faster than the cutout service.

The centre pixel is the one nearest to the object; nothing is resampled. A stamp that reaches over its brick's edge has
zeros there ("no data"): filling it from the neighbouring brick is left, as is reading bricks from a URL.
"""

import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, STAMP_SIZE

FITS_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError)  # what astropy raises for a broken file


class BrickSource:
    """A pixel source over ``legacysurvey-<brick>-image-<band>.fits.fz`` and its companions.

    Parameters
    ----------
    folder : path
        Holds the files themselves, one folder per brick, or the survey's ``coadd/<RRR>/<brick>/``.
    bands : sequence of str
        Planes of the stamps, in order.
    size : int
        Side of a stamp [pixels, odd].

    Notes
    -----
    Pixels with ``invvar`` 0 are set to exact zero, the survey's "no data". Coadds are in nMgy per pixel of 0.262
    arcsec, north up, east left.
    """

    def __init__(self, folder, bands=BANDS, size=STAMP_SIZE):
        self.folder, self.bands, self.size = Path(folder), tuple(bands), size

    def read(self, galaxies):
        """Read stamps.

        Parameters
        ----------
        galaxies : DataFrame
            ``brickname``, ``ra``, ``dec`` [deg].

        Returns
        -------
        images : ndarray of shape (N, n_bands, size, size), float32 [nMgy]
        reasons : list of str
            "" when fine.

        Raises
        ------
        UserError
            For a brick without one of the bands, or an unreadable file: a fault of the folder, not of an object.
        """
        images = np.full((len(galaxies), len(self.bands), self.size, self.size), np.nan, dtype=np.float32)
        reasons = [""] * len(galaxies)
        for brick, rows in galaxies.reset_index(drop=True).groupby("brickname").groups.items():
            part = galaxies.iloc[rows]
            for plane, band in enumerate(self.bands):
                image, wcs = self.load_plane(brick, "image", band)
                weight, _ = self.load_plane(brick, "invvar", band, required=False)
                image = image if weight is None else np.where(weight > 0, image, np.float32(0))
                x, y = wcs.all_world2pix(part["ra"].to_numpy(), part["dec"].to_numpy(), 0)
                for row, column, line in zip(rows, np.round(x).astype(int), np.round(y).astype(int), strict=True):
                    if 0 <= line < image.shape[0] and 0 <= column < image.shape[1]:
                        images[row, plane] = cut_box(image, line, column, self.size)
                    else:
                        reasons[row] = f"position outside brick {brick}"
        return images, reasons

    def read_planes(self, galaxies, kind, band=None):
        """Return ``invvar``, ``nexp`` (per band) or ``maskbits`` (no band) boxes, ndarray of shape (N, size, size)."""
        out = None
        for brick, rows in galaxies.reset_index(drop=True).groupby("brickname").groups.items():
            part = galaxies.iloc[rows]
            plane, wcs = self.load_plane(brick, kind, band)
            out = np.zeros((len(galaxies), self.size, self.size), dtype=plane.dtype) if out is None else out
            x, y = wcs.all_world2pix(part["ra"].to_numpy(), part["dec"].to_numpy(), 0)
            for row, column, line in zip(rows, np.round(x).astype(int), np.round(y).astype(int), strict=True):
                out[row] = cut_box(plane, line, column, self.size)
        return out

    def load_plane(self, brick, kind, band=None, required=True):
        """Return one plane of a brick and its WCS; (None, None) when it is absent and not required."""
        name = f"legacysurvey-{brick}-{kind}{'-' + band if band else ''}.fits"
        folders = (self.folder, self.folder / brick, self.folder / "coadd" / brick[:3] / brick)
        found = [f / (name + end) for f in folders for end in (".fz", ".gz", "") if (f / (name + end)).is_file()]
        if not found and required:
            raise UserError(
                f"brick {brick} has no {name}.fz in {self.folder.name}; put it there or leave the brick out"
            )
        if not found:
            return None, None
        try:
            with warnings.catch_warnings(), fits.open(found[0]) as hdus:
                warnings.simplefilter("ignore", FITSFixedWarning)
                hdu = next(h for h in hdus if h.is_image and h.header.get("NAXIS") == 2)
                data = np.asarray(hdu.data)
                return data.astype(data.dtype.newbyteorder("=")), WCS(hdu.header)
        except (*FITS_ERRORS, StopIteration) as error:
            raise UserError(f"{found[0].name}: not a readable coadd ({error}); fetch it again") from None


def cut_box(image, line, column, size):
    """Return the box of `size` pixels centred on a pixel; what lies outside the image is 0."""
    half = size // 2
    box = np.zeros((size, size), dtype=image.dtype)
    top, left = max(line - half, 0), max(column - half, 0)
    part = image[top : max(line + half + 1, 0), left : max(column + half + 1, 0)]
    box[top - line + half : top - line + half + part.shape[0], left - column + half :][:, : part.shape[1]] = part
    return box
