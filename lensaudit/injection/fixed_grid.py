"""The plain way to render an arc, for comparison: light sampled on a fixed grid of so many samples per pixel.

Rays, profiles and point-spread functions are those of the engine, so that what differs is the sampling alone.
"""

import numpy as np
import torch

from lensaudit.artifacts import UserError
from lensaudit.constants import PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection.devices import single_thread
from lensaudit.injection.inject import make_transfers, prepare
from lensaudit.injection.light import host_rows
from lensaudit.lensing.mass import shoot_rays
from lensaudit.lensing.render import choose_period, fold_spectrum, mirror_transfer
from lensaudit.lensing.sources import evaluate_sersic


def render_on_grid(table, hosts, seed, samples, bands=("r",), size=RENDER_SIZE):
    """Render noiseless arcs of Sersic sources from light sampled on a fixed grid.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table, N rows, without point sources and images.
    hosts : pandas.DataFrame
    seed : int
    samples : int
        Samples per pixel and axis, at least 2.
    bands : sequence of str
    size : int
        Pixels of the stamp.

    Returns
    -------
    ndarray of shape (N, bands, size, size), float64 [nMgy]

    Raises
    ------
    UserError
        For fewer than two samples per pixel.

    Notes
    -----
    Convolved at the grid's own resolution and read at pixel centres: frequencies to one cycle per pixel, as the engine.
    """
    if samples < 2:
        raise UserError(f"samples = {samples}: a fixed grid needs at least 2 samples per pixel")
    period, own = choose_period(size), host_rows(table, hosts)
    place = (torch.arange(size * samples, dtype=torch.float64) + 0.5) / samples - 0.5  # pixels from the first one
    y, x = torch.meshgrid(*2 * [(place - 0.5 * (size - 1)) * PIXEL_SCALE], indexing="ij")
    cycles = torch.arange(2 * period, dtype=torch.float64)
    cycles = torch.where(cycles < period, cycles, cycles - 2 * period) / period  # per pixel, FFT order
    phase = torch.exp(-2j * np.pi * cycles * (0.5 / samples - 0.5))
    images = np.zeros((len(table), len(bands), size, size))
    for row in range(len(table)):
        part, host = table.iloc[row : row + 1], own.iloc[row : row + 1]
        with single_thread():
            lens, components, (discs, knots, _), _ = prepare(part, host, seed, bands, torch.float64)
            bx, by = shoot_rays(x, y, {k: torch.tensor(v) for k, v in lens.items()})
            light = torch.zeros((2, *x.shape), dtype=torch.float64)
            for k in range(len(components["plane"])):
                component = {name: values[k] for name, values in components.items()}
                light[min(int(component["plane"]), 1)] += evaluate_sersic(bx, by, component)
            fine = torch.fft.rfft2(light * (PIXEL_SCALE / samples) ** 2, s=(period * samples, period * samples))
            fine = torch.cat([fine[:, :period, :period], fine[:, -period:, :period]], 1)
            fine = fine * phase[:, None] * phase[None, :period]
            spectrum = discs[0][:, None, None] * fine[0]
            if len(knots):
                spectrum = spectrum + knots[0][:, None, None] * fine[1]
            transfer = mirror_transfer(make_transfers(part, host, bands, "moffat", period, torch.float64)[0])
            images[row] = fold_spectrum(spectrum * transfer, size).numpy()
    return images
