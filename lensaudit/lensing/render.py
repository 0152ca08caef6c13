"""Rendering lensed sources: coarse ray-shooting finds the pixels that matter, fine samples go there, one FFT convolves.

A batch is a list of (component, pixel) pairs. Every pair is sampled on its own subgrid, finer for compact components,
and added to the stamp's fine map. The maps are transformed once per colour group; each band multiplies them with its
PSF's transfer function and comes back on native pixels (frequencies beyond the pixel grid are folded, as sampling a
continuous image folds them). A stamp's result does not depend on the others in its batch.
"""

import numpy as np
import torch

from lensaudit.constants import PIXEL_SCALE, RENDER_SIZE
from lensaudit.lensing.mass import shoot_rays
from lensaudit.lensing.psf import transfer_moffat
from lensaudit.lensing.sources import evaluate_sersic

SAMPLES = 2**17  # evaluated at once; small enough to stay in the cache
PERIOD = 80  # pixels; the 65-px box plus a margin that keeps the wings of the far side below 1e-3 of the peak
LENS = ("theta_E", "q", "phi", "gamma1", "gamma2")
FIELDS = ("x", "y", "xx", "xy", "yy", "b", "inverse_n", "central")


def make_grid(size, dtype=torch.float32, device="cpu"):
    """Return the pixel centres [arcsec] of an odd-sized stamp along one axis; the middle pixel is at 0."""
    return (torch.arange(size, dtype=dtype, device=device) - (size - 1) / 2) * PIXEL_SCALE


def render_maps(lens, components, size=RENDER_SIZE, supersampling=4, refine=1.0):
    """Sample the lensed surface brightness of a batch.

    Parameters
    ----------
    lens : dict of Tensor of shape (N,)
        theta_E [arcsec], q, phi [rad], gamma1, gamma2.
    components : dict of Tensor of shape (M,)
        stamp (int64, index into the batch), plane (int64, index of the map the component is added to), extent and core
        [arcsec], sampling (int64: samples per pixel and axis the component needs in its core; half outside), and the
        fields of `sources.evaluate_sersic`.
    size : int
        Odd number of pixels of the stamp.
    supersampling : int
        Samples per pixel and axis of the maps.
    refine : float
        Components are sampled `refine` x `sampling` times per pixel where that is finer than the map; 0 samples all on
        the map's own grid (for comparison with others on equal sampling).

    Returns
    -------
    Tensor of shape (planes, size * supersampling, size * supersampling)
        Surface brightness [component flux / arcsec^2] at the samples' centres, zero where negligible.
    """
    device, dtype = lens["theta_E"].device, lens["theta_E"].dtype
    grid = make_grid(size, dtype, device)
    pair, row, column, core = _flag_pixels(lens, components, grid)
    s = supersampling
    planes = int(components["plane"].max()) + 1 if len(components["plane"]) else 0
    maps = torch.zeros((planes, size, s, size, s), dtype=dtype, device=device)
    level = torch.clamp(components["sampling"][pair] * torch.where(core, refine, 0.5 * refine) / s, min=1.0)
    for r in (1, 2, 4, 8, 16):
        chosen = (level == r).nonzero().flatten()
        for part in torch.split(chosen, max(1, SAMPLES // (s * r) ** 2)):
            if len(part):
                k, i, j = pair[part], row[part], column[part]
                values = _sample_pixels(lens, components, grid, k, i, j, s, r)
                index = (components["plane"][k][:, None, None], i[:, None, None],
                         torch.arange(s, device=device)[None, :, None], j[:, None, None],
                         torch.arange(s, device=device)[None, None, :])  # fmt: skip
                maps.index_put_(index, values, accumulate=True)
    return maps.view(planes, size * s, size * s)


def _flag_pixels(lens, components, grid):
    """Return component, row and column of every pixel in which it is not negligible, and if the pixel sees its core."""
    x, y = grid[None, None, :], grid[None, :, None]
    wide = {k: v[:, None, None] for k, v in lens.items()}
    bx, by = shoot_rays(x, y, wide)
    cos, sin = torch.cos(wide["phi"]), torch.sin(wide["phi"])
    u, v = x * cos + y * sin, y * cos - x * sin
    radius = torch.sqrt(wide["q"] * u * u + v * v / wide["q"]).clamp_min(0.5 * PIXEL_SCALE)
    # Half a pixel's diagonal, mapped to the source plane: the largest eigenvalue of the Jacobian bounds the stretch.
    shear = torch.sqrt(wide["gamma1"] ** 2 + wide["gamma2"] ** 2)
    reach = 0.75 * PIXEL_SCALE * ((1.0 - wide["theta_E"] / radius).abs().clamp_min(1.0) + shear)
    stamp = components["stamp"]
    dx = bx[stamp] - components["x"][:, None, None]
    dy = by[stamp] - components["y"][:, None, None]
    distance = torch.sqrt(dx * dx + dy * dy) - reach[stamp]
    k, i, j = (distance < components["extent"][:, None, None]).nonzero(as_tuple=True)
    return k, i, j, distance[k, i, j] < components["core"][k]


def _sample_pixels(lens, components, grid, k, i, j, s, r):
    """Return the mean brightness in the s x s cells of pixels (i, j) for component k, each from r x r samples."""
    steps = ((torch.arange(s * r, dtype=grid.dtype, device=grid.device) + 0.5) / (s * r) - 0.5) * PIXEL_SCALE
    x = (grid[j][:, None] + steps)[:, None, :]
    y = (grid[i][:, None] + steps)[:, :, None]
    stamp = components["stamp"][k]
    bx, by = shoot_rays(x, y, {name: lens[name][stamp][:, None, None] for name in LENS})
    picked = {name: components[name][k][:, None, None] for name in FIELDS}
    values = torch.empty_like(bx)
    inverse = components["inverse_n"][k]
    for index, match in ((0.5, inverse == 2.0), (None, inverse != 2.0)):
        rows = match.nonzero().flatten()
        if len(rows):
            part = {name: value[rows] for name, value in picked.items()} | {"index": index}
            values[rows] = evaluate_sersic(bx[rows], by[rows], part)
    if r == 1:
        return values
    total = 0.0
    for a in range(r):
        for b in range(r):
            total = total + values[:, a::r, b::r]
    return total / (r * r)


def frequencies(dtype=torch.float32, device="cpu"):
    """Return the angular frequencies [rad/pixel] used: rows (2 PERIOD, FFT order) and columns (PERIOD, from 0)."""
    rows = torch.fft.fftfreq(2 * PERIOD, 1.0 / (2 * PERIOD), dtype=dtype, device=device)
    columns = torch.arange(PERIOD, dtype=dtype, device=device)
    return rows * (2.0 * np.pi / PERIOD), columns * (2.0 * np.pi / PERIOD)


def make_transfer(alpha, beta, dtype=torch.float32, device="cpu"):
    """Return transfer functions of circular Moffats.

    Parameters
    ----------
    alpha : Tensor of shape (N, bands)
        Moffat radius [pixel]; of a Gaussian its sigma.
    beta : ndarray of shape (N,)
        Moffat index; infinity is a Gaussian.

    Returns
    -------
    Tensor of shape (N, bands, 2 PERIOD, PERIOD)
    """
    columns = torch.arange(PERIOD, dtype=dtype, device=device) * (2.0 * np.pi / PERIOD)
    half = torch.arange(PERIOD + 1, dtype=dtype, device=device) * (2.0 * np.pi / PERIOD)
    k = torch.sqrt(half[:, None] ** 2 + columns[None, :] ** 2)
    quarter = torch.empty((*alpha.shape, PERIOD + 1, PERIOD), dtype=dtype, device=device)
    beta = np.asarray(beta, dtype=np.float64)
    for value in np.unique(beta):
        rows = torch.as_tensor(np.flatnonzero(beta == value), device=device)
        quarter[rows] = transfer_moffat(k, alpha[rows][..., None, None], float(value))
    mirror = torch.arange(2 * PERIOD, device=device)
    return quarter.index_select(-2, torch.where(mirror <= PERIOD, mirror, 2 * PERIOD - mirror))


def convolve_maps(maps, size, supersampling):
    """Return the spectrum of supersampled maps at the frequencies of `make_transfer`.

    Parameters
    ----------
    maps : Tensor of shape (planes, size * supersampling, size * supersampling)

    Returns
    -------
    complex Tensor of shape (planes, 2 PERIOD, PERIOD)
        In units of flux: the samples are weighted with their area.
    """
    s, length = supersampling, PERIOD * supersampling
    spectrum = torch.fft.rfft(maps, n=length, dim=-1)[..., :PERIOD]
    spectrum = torch.fft.fft(spectrum, n=length, dim=-2)
    if s > 2:
        spectrum = torch.cat([spectrum[..., :PERIOD, :], spectrum[..., -PERIOD:, :]], dim=-2)
    rows, columns = frequencies(maps.dtype, maps.device)
    offset = (s - 1) / (2.0 * s)
    area = (PIXEL_SCALE / s) ** 2
    return spectrum * (torch.polar(torch.full_like(rows, area), rows * offset)[:, None]
                       * torch.polar(torch.ones_like(columns), columns * offset)[None, :])  # fmt: skip


def fold_spectrum(spectrum, size):
    """Return the native-resolution images whose continuous spectrum is given.

    Parameters
    ----------
    spectrum : complex Tensor of shape (..., 2 PERIOD, PERIOD)

    Returns
    -------
    Tensor of shape (..., size, size)

    Notes
    -----
    Sampling at pixel centres adds all frequencies that differ by whole cycles per pixel; those from -1 to 1 cycle are
    kept, beyond which every PSF of the survey transmits less than 1e-6.
    """
    folded = spectrum[..., :PERIOD, :] + spectrum[..., PERIOD:, :]
    half = PERIOD // 2
    back = torch.arange(PERIOD, device=spectrum.device)
    mirrored = folded.index_select(-2, (PERIOD - back) % PERIOD)[..., half:].flip(-1).conj()
    native = folded[..., : half + 1].clone()
    native[..., 1:] += mirrored
    return torch.fft.irfft2(native, s=(PERIOD, PERIOD))[..., :size, :size]


def render_arcs(lens, components, weights, transfer, size=RENDER_SIZE, supersampling=4, refine=1.0):
    """Render a batch of lensed sources in all bands.

    Parameters
    ----------
    lens : dict of Tensor of shape (N,)
        See `render_maps`.
    components : dict of Tensor of shape (M,)
        See `render_maps`; of the first N planes plane n is stamp n's first colour group, later ones are named by
        `weights`.
    weights : (Tensor of shape (N, bands), Tensor of shape (L, bands), Tensor of shape (L,) int64)
        Fluxes [nMgy] of the first group of each stamp, of the second groups, and the stamps these belong to.
    transfer : Tensor of shape (N, bands, 2 PERIOD, PERIOD)
        PSF transfer functions.

    Returns
    -------
    (Tensor of shape (N, bands, size, size), Tensor of shape (N, bands))
        Flux per pixel [nMgy] and total lensed flux in the box before convolution [nMgy].
    """
    first, second, owner = weights
    maps = render_maps(lens, components, size, supersampling, refine)
    spectrum = convolve_maps(maps, size, supersampling)
    n = len(first)
    images = spectrum[:n, None] * first[:, :, None, None]
    images[owner] += spectrum[n:, None] * second[:, :, None, None]
    # The zero frequency is the sum of the samples.
    flux = images[:, :, 0, 0].real.clone()
    return fold_spectrum(images * transfer, size), flux
