"""Bring a stamp of another pixel scale to the survey's pixels with its flux kept, and measure that it was kept.

Inverse variances and mask bits are not carried through a resampling yet.
"""

from dataclasses import replace

import numpy as np

from lensaudit.constants import BANDS, PIXEL_SCALE, STAMP_SIZE
from lensaudit.pixels.formats import select_bands


def resample_stamp(stamp, pixel_scale=PIXEL_SCALE, size=STAMP_SIZE):
    """Bring a stamp to the survey's pixels, centred, with its flux kept.

    Parameters
    ----------
    stamp : Stamp
    pixel_scale : float
        arcsec.
    size : int
        Pixels of the new stamp; odd, so that the image centre falls on the central pixel.

    Returns
    -------
    Stamp
        With ``resampled`` True unless the pixels were only cropped.

    Notes
    -----
    Area-weighted: a new pixel is the sum of the old ones, each times the share of it that lies inside, so the flux over
    the covered area is kept exactly. The image is smoothed by the new pixel once more and its noise is correlated:
    a noise measured on such a stamp is not the coadd's. Old pixels without data carry no weight; a new pixel
    less than half covered is an exact zero, "no data".
    """
    step = pixel_scale / stamp.pixel_scale
    height, width = stamp.images.shape[-2:]
    top, left = (height - size) / 2, (width - size) / 2
    if abs(step - 1) < 1e-3 and top >= 0 and left >= 0 and top % 1 == 0 and left % 1 == 0:
        box = (slice(int(top), int(top) + size), slice(int(left), int(left) + size))
        return replace(
            stamp, images=stamp.images[:, *box].copy(), pixel_scale=pixel_scale,
            invvar=None if stamp.invvar is None else stamp.invvar[:, *box].copy(),
            maskbits=None if stamp.maskbits is None else stamp.maskbits[box].copy(),
        )  # fmt: skip
    valid = np.isfinite(stamp.images) & (stamp.images != 0)
    flux = np.where(valid, stamp.images, 0).astype(np.float64)
    rows, columns = _overlap_matrix(height, size, step), _overlap_matrix(width, size, step)
    summed = rows @ flux @ columns.T
    covered = rows @ valid.astype(np.float64) @ columns.T / step**2
    images = np.where(covered >= 0.5, summed / np.maximum(covered, 0.5), 0).astype(np.float32)
    return replace(stamp, images=images, pixel_scale=pixel_scale, invvar=None, maskbits=None, resampled=True)


def _overlap_matrix(n_old, n_new, step):
    """Return the length of every old pixel inside every new one, both sets centred, in old pixels; (n_new, n_old)."""
    centre = (n_old - 1) / 2 + (np.arange(n_new) - (n_new - 1) / 2) * step
    old = np.arange(n_old)
    upper = np.minimum(centre[:, None] + step / 2, old + 0.5)
    lower = np.maximum(centre[:, None] - step / 2, old - 0.5)
    return np.clip(upper - lower, 0, None)


def measure_aperture(stamp, radius, bands=BANDS, n_sub=10):
    """Return the flux inside a centred circle, the pixels' shares of it counted on `n_sub` x `n_sub` points.

    Parameters
    ----------
    stamp : Stamp
    radius : float
        arcsec.
    bands : sequence of str
    n_sub : int

    Returns
    -------
    ndarray of shape (len(bands),), nMgy
    """
    images = np.nan_to_num(select_bands(stamp, bands).astype(np.float64))
    height, width = images.shape[-2:]
    y = ((np.arange(height * n_sub) + 0.5) / n_sub - height / 2) * stamp.pixel_scale
    x = ((np.arange(width * n_sub) + 0.5) / n_sub - width / 2) * stamp.pixel_scale
    inside = y[:, None] ** 2 + x[None, :] ** 2 < radius**2
    share = inside.reshape(height, n_sub, width, n_sub).mean(axis=(1, 3))
    return (images * share).sum(axis=(1, 2))
