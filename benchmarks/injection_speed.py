"""Speed and accuracy of the injection engine beside lenstronomy, in the same run on the same cores.

Usage: python benchmarks/injection_speed.py [--n 256] [--seed 1] [--json]

Job: three bands, 65-px box, SIE + shear, disc with or without clumps, a Moffat per band. Peers: lenstronomy's
ImageModel per band, convolved at 4x, and lenstronomy at its best use: one ray-shooting for three bands and one FFT each
at 4x. One core each unless --threads says otherwise (engine only).
"""

import argparse
import json
import resource
import time

import numpy as np
import pandas as pd
import torch
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from scipy.fft import irfft2, rfft2

from lensaudit import photometry, rng
from lensaudit.config import Config
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection import inject, population
from lensaudit.injection.oracle import render_with_lenstronomy, source_kwargs, to_lens_kwargs, to_light_kwargs


def make_job(n, seed):
    """Draw `n` rows from the fiducial prior's parameters without cuts, and one host of median conditions."""
    prior = population.load_prior("collett")
    u = rng.draw_uniforms(seed, "benchmark", np.arange(n), 20)
    parents = population.draw_parents(u[:, :4], prior)
    sources = population.draw_sources(u[:, 4:13], parents["z_source"], prior)
    radius, angle = 0.6 * parents["theta_E"] * np.sqrt(u[:, 13]), 2 * np.pi * u[:, 14]
    table = pd.DataFrame({k: v for k, v in (parents | sources).items() if k != "log_q"}).assign(
        injection_id=np.arange(n), host_index=0, source_x=radius * np.cos(angle), source_y=radius * np.sin(angle),
        q=0.5 + 0.45 * u[:, 15], phi=np.pi * u[:, 16], gamma1=0.06 * (u[:, 17] - 0.5), gamma2=0.06 * (u[:, 18] - 0.5),
        psf_beta=np.array([2.5, 3.5, 4.5])[(3 * u[:, 19]).astype(int)],
    )  # fmt: skip
    table["source_R"] = table["source_R"].clip(lower=0.05)
    host = {"host_index": [0], "galaxy_id": ["benchmark"]}
    for band, psfsize, depth in (("g", 1.6, 24.75), ("r", 1.45, 24.25), ("z", 1.35, 23.35)):
        host |= {f"psfsize_{band}": psfsize, f"psfdepth_{band}": photometry.depth_to_ivar(depth),
                 f"mw_transmission_{band}": 0.9, f"nobs_{band}": 4}  # fmt: skip
    return table, pd.DataFrame(host)


def render_by_image_model(row, host, seed):
    """Render a row with lenstronomy's ImageModel, one per band; the disc stands for the whole source."""
    values, own = row.iloc[0], inject.host_rows(row, host)
    alpha, beta = inject.moffat_radii(row, own)
    fluxes = np.add(*inject.band_fluxes(row, own))[0]
    images = []
    for k in range(len(BANDS)):
        offset = (np.arange(4 * 63 + 1) - 2 * 63) / 4
        kernel = (1 + (offset[:, None] ** 2 + offset[None] ** 2) / alpha[0, k] ** 2) ** -beta[0]
        data = ImageData(np.zeros((RENDER_SIZE, RENDER_SIZE)), ra_at_xy_0=-32 * PIXEL_SCALE,
                         dec_at_xy_0=-32 * PIXEL_SCALE, transform_pix2angle=PIXEL_SCALE * np.eye(2))  # fmt: skip
        psf = PSF("PIXEL", kernel_point_source=kernel / kernel.sum(), point_source_supersampling_factor=4)
        numerics = {"supersampling_factor": 4, "supersampling_convolution": True, "supersampling_kernel_size": None}
        model = ImageModel(data, psf, LensModel(["SIE", "SHEAR"]), LightModel(["SERSIC_ELLIPSE"]),
                           kwargs_numerics=numerics)  # fmt: skip
        light = to_light_kwargs(fluxes[k], *(values[c] for c in (
            "source_x", "source_y", "source_R", "source_n", "source_q", "source_phi")))  # fmt: skip
        images.append(model.image(to_lens_kwargs(values), [light], [], []))
    return np.stack(images)


def render_best_use(row, host, seed, s=4):
    """Render a row with one lenstronomy ray-shooting for three bands and one transform per map, kernel and band."""
    values, own = row.iloc[0], inject.host_rows(row, host)
    (disc,), (knots,) = inject.band_fluxes(row, own)
    length, period = RENDER_SIZE * s, 80 * s
    grid = (np.arange(length) - (length - 1) / 2) * PIXEL_SCALE / s
    xx, yy = (a.ravel() for a in np.meshgrid(grid, grid))
    beta_x, beta_y = LensModel(["SIE", "SHEAR"]).ray_shooting(xx, yy, to_lens_kwargs(values))
    spectrum = 0.0
    for flux, kwargs in zip((disc, knots), source_kwargs(row, seed), strict=True):
        if kwargs:
            light = LightModel(["SERSIC_ELLIPSE"] * len(kwargs)).surface_brightness(beta_x, beta_y, kwargs)
            fine = (PIXEL_SCALE / s) ** 2 * light.reshape(length, length).astype(np.float32)
            spectrum = spectrum + flux.astype(np.float32)[:, None, None] * rfft2(fine, s=(period, period))
    alpha, beta = inject.moffat_radii(row, own)
    offset = np.minimum(np.arange(period), period - np.arange(period)) / s
    radius2 = (offset[:, None] ** 2 + offset[None, :] ** 2).astype(np.float32)
    kernels = (1 + radius2 / np.float32(alpha[0])[:, None, None] ** 2) ** np.float32(-beta[0])
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    fine = irfft2(spectrum * rfft2(kernels), s=(period, period))[:, :length, :length]
    return fine.reshape(len(BANDS), RENDER_SIZE, s, RENDER_SIZE, s).mean(axis=(2, 4)) * s**2


def time_peer(function, table, host, seed, n):
    """Return stamps per second of a function of one row."""
    function(table[:1], host, seed)
    start = time.perf_counter()
    for i in range(n):
        function(table[i : i + 1], host, seed)
    return n / (time.perf_counter() - start)


def measure_accuracy(table, host, config, seed, n=24):
    """Return max-residual/peak and flux error against lenstronomy at 15 samples per pixel, for R >= 0.05 arcsec."""
    arcs, _ = inject.render_table(table[:n], host, config, seed)
    residual, flux = [], []
    for i in range(n):
        reference = render_with_lenstronomy(table[i : i + 1], host, seed, supersampling=15)
        residual.append(np.abs(arcs[i] - reference).max() / reference.max())
        flux.append(np.abs(arcs[i].sum() / reference.sum() - 1))
    return np.percentile(residual, 99), np.percentile(flux, 99)


def main():
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config, (table, host) = Config(device="auto"), make_job(args.n, args.seed)
    zeros = np.zeros((args.n, 3, RENDER_SIZE, RENDER_SIZE), np.float32)
    inject.inject(table[:64], host, zeros[:64], config, args.seed)
    rates = {"engine": [], "engine with noise": [], "lenstronomy best use, 4x": [], "lenstronomy ImageModel, 4x": []}
    for _ in range(3):  # alternating, so that a busy machine slows all alike
        start = time.perf_counter()
        inject.render_table(table, host, config, args.seed)
        middle = time.perf_counter()
        inject.inject(table, host, zeros, config, args.seed)
        rates["engine"].append(args.n / (middle - start))
        rates["engine with noise"].append(args.n / (time.perf_counter() - middle))
        rates["lenstronomy best use, 4x"].append(time_peer(render_best_use, table, host, args.seed, 24))
        rates["lenstronomy ImageModel, 4x"].append(time_peer(render_by_image_model, table, host, args.seed, 12))
    rate = {name: float(np.median(values)) for name, values in rates.items()}
    residual, flux = measure_accuracy(table, host, config, args.seed)
    print(f"{'':32s} stamps/s   engine is faster by")
    for name, value in rate.items():
        print(f"{name:32s} {value:8.1f}   {rate['engine'] / value:6.1f}")
    print(f"99th percentile of max residual / peak {residual:.2e}, of flux error {flux:.2e} (R >= 0.05 arcsec)")
    if args.json:
        print(json.dumps({
            "stamps_per_s": rate["engine with noise"],
            "ratio_best_use": rate["engine"] / rate["lenstronomy best use, 4x"],
            "ratio_imagemodel_4x": rate["engine"] / rate["lenstronomy ImageModel, 4x"], "residual_p99": residual,
            "flux_error_p99": flux, "device": str(inject.pick_device("auto")), "threads": args.threads,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
