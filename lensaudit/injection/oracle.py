"""The same injection by lenstronomy: the check of the engine, and `engine="lenstronomy"` for any row.

Shares only the table's meaning and the PSF's parameters with the engine: deflection and brightness are lenstronomy's,
sampling and convolution are done here. Cells are split until nothing changes, so the result is a reference, not a race.
"""

import numpy as np
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import ellipticity2phi_q
from scipy.fft import irfft2, next_fast_len, rfft2

from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection.conversion import (
    describe_row,
    evaluate_psf,
    from_lenstronomy,
    source_kwargs,
    to_lens_kwargs,
    to_lenstronomy,
    to_light_kwargs,
    to_mass_model,
)
from lensaudit.lensing.psf import check_kernel

__all__ = [
    "collect_samples", "convolve_samples", "describe_row", "evaluate_psf", "from_lenstronomy", "make_source",
    "render_rows", "source_kwargs", "to_lens_kwargs", "to_lenstronomy", "to_light_kwargs", "to_mass_model",
]  # fmt: skip
FINE = 8  # samples per pixel of the grid that light is put on; cubic weights leave below 3e-5 of the peak
NODES, WEIGHTS = np.polynomial.legendre.leggauss(3)


def make_source(description):
    """Return a function of source-plane positions that gives each group's brightness, shape (groups, n)."""
    # A new LightModel per object: lenstronomy's interpolated profiles keep the first image they are given.
    models = [(LightModel(g["light_model_list"], profile_kwargs_list=g["profile_kwargs_list"]), g["kwargs_light"])
              for g in description["groups"].values()]  # fmt: skip
    amplitude, radius, phi = description.get("gradient", (0.0, 1.0, 0.0))
    centre = description["groups"]["disc"]["kwargs_light"][0] if "disc" in description["groups"] else None

    def shine(x, y):
        light = np.stack([model.surface_brightness(x, y, kwargs) for model, kwargs in models])
        if amplitude:
            along = (x - centre["center_x"]) * np.cos(phi) + (y - centre["center_y"]) * np.sin(phi)
            light[0] *= 1.0 + amplitude * np.tanh(along / radius)
        return light

    return shine


def find_scales(description):
    """Return x, y, reach and scale [arcsec] of every component, (components, 4): cells there must resolve the scale."""
    out = []
    for group in description["groups"].values():
        for kwargs in group["kwargs_light"]:
            if "image" in kwargs:
                side = kwargs["scale"]
                out.append((kwargs["center_x"], kwargs["center_y"], 0.7 * side * len(kwargs["image"]), 16.0 * side))
                continue
            if "sigma" in kwargs:
                scale = kwargs["sigma"]
            else:
                _, q = ellipticity2phi_q(kwargs["e1"], kwargs["e2"])
                scale = kwargs["R_sersic"] * np.sqrt(q)
            out.append((kwargs["center_x"], kwargs["center_y"], 2.0 * scale, scale))
    return np.array(out)


def collect_samples(description, size, tolerance=1e-6, depth=9):
    """Integrate the lensed brightness by lenstronomy, splitting cells until their integrals stand still.

    Parameters
    ----------
    description : dict
        From `describe_row`.
    size : int
        Pixels of the box.
    tolerance : float
        A cell is split while its integral differs from the sum over its quarters by more than this share of the flux.
    depth : int
        Splittings at most: the finest cells hold 3 x 2^depth samples per pixel and axis.

    Returns
    -------
    (ndarray of shape (n,), ndarray of shape (n,), ndarray of shape (groups, n))
        Positions [pixel, from the first pixel's centre] and light of each group there [flux of the unit group].

    Notes
    -----
    3 x 3 Gauss-Legendre nodes per cell, starting from whole pixels; cells of more than a half-pixel's side remain only
    where there is no light. A cell that may hold an image of a component and does not resolve its scale is split in any
    case, so that small images between nodes are not missed.
    """
    lens, shine = LensModel(description["lens_model_list"]), make_source(description)
    scales = find_scales(description)
    weight = np.array([g["flux"]["r"] for g in description["groups"].values()])
    weight = weight / weight.sum() if weight.sum() > 0 else np.ones_like(weight)
    nx, ny = (a.ravel() for a in np.meshgrid(0.5 * NODES, 0.5 * NODES))
    share = 0.25 * np.outer(WEIGHTS, WEIGHTS).ravel()
    x, y = (a.ravel().astype(np.float64) for a in np.meshgrid(np.arange(size), np.arange(size)))
    expected, done, total = np.full(len(x), np.inf), [], 0.0
    for level in range(depth + 1):
        side = 0.5**level
        px, py = x[:, None] + side * nx, y[:, None] + side * ny
        sky = [((p - (size - 1) / 2) * PIXEL_SCALE).ravel() for p in (px, py)]
        sky[0] += 1e-9  # the very centre of a power law is 0/0 to lenstronomy
        bx, by = lens.ray_shooting(*sky, description["kwargs_lens"])
        light = shine(bx, by).reshape(len(weight), *px.shape) * share * (side * PIXEL_SCALE) ** 2
        if description.get("inner"):
            light = np.where(_find_inner(*sky, *description["inner"]).reshape(px.shape), 0.0, light)
        flux = np.tensordot(weight, light.sum(axis=2), 1)
        bx, by = bx.reshape(px.shape), by.reshape(px.shape)
        reach = 1.5 * np.sqrt(((bx - bx[:, 4:5]) ** 2 + (by - by[:, 4:5]) ** 2).max(axis=1))
        split = np.zeros(len(x), dtype=bool)
        for cx, cy, extent, scale in scales:
            split |= (np.hypot(bx[:, 4] - cx, by[:, 4] - cy) < reach + extent) & (reach > 0.5 * scale)
        if level == 0:
            split |= flux > 1e-8 * flux.sum()
        else:
            quarters = flux.reshape(-1, 4)
            wrong = np.abs(quarters.sum(axis=1) - expected) > tolerance * (total + flux.sum())
            split |= np.repeat(wrong, 4)
        split &= level < depth
        done.append((px[~split].ravel(), py[~split].ravel(), light[:, ~split].reshape(len(weight), -1)))
        total += flux[~split].sum()
        if not split.any():
            break
        expected = flux[split]
        x, y = (np.repeat(v[split], 4) + np.tile(step, split.sum()) * 0.25 * side
                for v, step in ((x, [-1.0, 1.0, -1.0, 1.0]), (y, [-1.0, -1.0, 1.0, 1.0])))  # fmt: skip
    return tuple(np.concatenate([d[k] for d in done], axis=-1) for k in range(3))


def _find_inner(x, y, theta_E, q, phi):
    """Return where positions [arcsec] are inside the ellipse of suppressed inner images."""
    along, across = x * np.cos(phi) + y * np.sin(phi), y * np.cos(phi) - x * np.sin(phi)
    return q * along**2 + across**2 / q < theta_E**2


def find_point_images(description):
    """Return positions [pixel offset from the stamp's centre] and magnifications of the point source's images."""
    lens = LensModel(description["lens_model_list"])
    point, kwargs = description["point"]["kwargs_ps"][0], description["kwargs_lens"]
    # Off the symmetry axes: the solver looks for minima on a grid and loses an image that lies between two points.
    options = {"min_distance": 0.02, "search_window": 12.0, "num_iter_max": 200, "x_center": 0.0037, "y_center": 0.0021}
    solver = LensEquationSolver(lens)
    x, y = solver.image_position_from_source(point["ra_source"], point["dec_source"], kwargs, **options)
    mu = np.abs(lens.magnification(x, y, kwargs))
    if description.get("inner"):
        mu = np.where(_find_inner(x, y, *description["inner"]), 0.0, mu)
    return x / PIXEL_SCALE, y / PIXEL_SCALE, mu


def spread_samples(x, y, flux, length):
    """Put light at positions [fine sample] onto a grid with cubic Lagrange weights, (length, length)."""
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    wy, wx = _lagrange_weights(y - i), _lagrange_weights(x - j)
    out = np.zeros(length * length)
    for a in range(4):
        for b in range(4):
            out += np.bincount((i + a - 1) * length + j + b - 1, flux * wy[a] * wx[b], minlength=length * length)
    return out.reshape(length, length)


def _lagrange_weights(t):
    return (-t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2, -(t + 1) * t * (t - 2) / 2,
            (t + 1) * t * (t - 1) / 6)  # fmt: skip


def convolve_samples(x, y, flux, size, psf, band, psf_image=None):
    """Return the image at the pixel centres of light at given positions, shape (size, size).

    Parameters
    ----------
    x, y, flux : ndarray of shape (n,)
        Positions [pixel, from the first pixel's centre], light.
    size : int
    psf : dict
        See `evaluate_psf`.
    band : str
    psf_image : ndarray of shape (K, K), optional
        In place of `psf`: normalised, on native pixels; read between its pixels with a sinc.

    Notes
    -----
    The PSF holds the pixel, so it is read at the pixels' centres and not averaged over them. No frequency is cut.
    """
    period = next_fast_len(2 * size + 2, real=True)
    length = FINE * period
    fine = spread_samples(FINE * (x + 1.0), FINE * (y + 1.0), flux, length)
    if psf_image is None:
        offset = np.fft.fftfreq(length, 1.0 / length) * PIXEL_SCALE / FINE
        spectrum = rfft2(PIXEL_SCALE**2 * evaluate_psf(offset[None, :], offset[:, None], psf, band))
    else:
        half, native = len(psf_image) // 2, np.zeros((period, period))
        index = np.arange(-half, half + 1) % period
        native[index[:, None], index[None, :]] = psf_image
        known = np.arange(-((period - 1) // 2), (period - 1) // 2 + 1)
        spectrum = np.zeros((length, length // 2 + 1), dtype=complex)
        columns = known[known >= 0]
        spectrum[known[:, None], columns] = FINE**2 * np.fft.fft2(native)[known[:, None], columns]
    image = irfft2(rfft2(fine) * spectrum, s=(length, length))
    return image[FINE : FINE * (size + 1) : FINE, FINE : FINE * (size + 1) : FINE]


def render_rows(table, hosts, config, seed, bands=BANDS, psf_mode="moffat", psf_images=None, dtype=np.float32,
                size=RENDER_SIZE, bank=None, tolerance=1e-6, depth=9, **_):  # fmt: skip
    """Render the noiseless arcs of a table with lenstronomy, row by row, as `inject.render_table` does.

    Parameters
    ----------
    table, hosts, config, seed, bands, psf_mode, psf_images, size
        As `inject.render_table`; `config` and further keywords of the engine (sampling, batch) are not used.
    dtype : type
        float64 for anything that reads like it, else float32.
    bank : lensaudit.lensing.sources.ImageBank, optional
        Of rows with a bank_index.
    tolerance, depth
        See `collect_samples`.

    Returns
    -------
    (ndarray of shape (N, bands, size, size), ndarray of shape (N, bands))
        Extincted flux per pixel and summed lensed flux in the box [nMgy].
    """
    kind = np.float64 if "float64" in str(dtype) else np.float32
    images, total = np.zeros((len(table), len(bands), size, size), kind), np.zeros((len(table), len(bands)))
    for row in range(len(table)):
        description = describe_row(table.iloc[row : row + 1], hosts, seed, psf_mode, bank)
        x, y, light = collect_samples(description, size, tolerance, depth)
        for k, band in enumerate(bands):
            flux = np.array([g["flux"][band] for g in description["groups"].values()]) @ light
            px, py = x, y
            if description["point"]:
                ox, oy, mu = find_point_images(description)
                inside = np.maximum(np.abs(ox), np.abs(oy)) < size / 2
                px, py = (np.append(p, o[inside] + (size - 1) / 2) for p, o in ((x, ox), (y, oy)))
                flux = np.append(flux, description["point"]["flux"][band] * mu[inside])
            image = None if psf_images is None else check_kernel(psf_images[row], size)[k]
            images[row, k] = convolve_samples(px, py, flux, size, description["psf"][band], band, image)
            total[row, k] = flux.sum()
    return images, total
