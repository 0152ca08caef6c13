"""Accuracy of the injection engine against lenstronomy refined row by row until it stands still.

Usage: python benchmarks/injection_accuracy.py [--n 500] [--strata 8] [--seed 1] [--cache DIR] [--json] [--out FILE]

Systems are drawn from a named prior (the seed is yours to choose), sources as compact as the prior makes them, hosts of
their own seeing; beside them strata of R_e and n. The reference (`injection.oracle`) integrates lenstronomy's
ray-shooting and light over cells that are split where the source is bright, and reads the point-spread function at
pixel centres without cutting a frequency; its levels get finer until two differ by less than a quarter of the goal.
Rows that never do are counted and left out. With --cache finished references are kept and used again.
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lenstronomy.LensModel.lens_model import LensModel

from lensaudit import photometry, rng
from lensaudit.config import Config
from lensaudit.constants import PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection import conversion, inject, oracle, population

GOAL, FLUX_GOAL = 2e-3, 5e-4
LEVELS = ((4e-6, 7), (1e-6, 9), (2.5e-7, 11), (6e-8, 13), (1.5e-8, 15))  # share of the flux per cell, splittings
RADII, INDICES = (0.02, 0.05, 0.1, 0.2, 0.4), (0.5, 1.0, 2.0, 4.0)
EDGES = (0.0, 0.03, 0.05, 0.1, 0.2, 0.4, np.inf)
BAND = "r"
VERSION = 1  # of the reference: raise it when its numbers change


def make_job(n, seed, prior="collett", floor=0.0, first_id=0):
    """Draw `n` rows from a prior's parameters without cuts, each with a host of its own seeing.

    Parameters
    ----------
    n, seed : int
    prior : str
    floor : float
        Smallest half-light radius [arcsec].
    first_id : int
        Row i depends on seed and first_id + i only.

    Returns
    -------
    (pandas.DataFrame, pandas.DataFrame)
        Injection table and host table.
    """
    prior, ids = population.load_prior(prior), first_id + np.arange(n)
    u = rng.draw_uniforms(seed, "benchmark", ids, 26)
    parents = population.draw_parents(u[:, :4], prior)
    sources = population.draw_sources(u[:, [*range(4, 13), 24, 25]], parents["z_source"], prior)
    radius, angle = 0.6 * parents["theta_E"] * np.sqrt(u[:, 13]), 2 * np.pi * u[:, 14]
    table = pd.DataFrame({k: v for k, v in (parents | sources).items() if k != "log_q"}).assign(
        injection_id=ids, host_index=ids, source_x=radius * np.cos(angle), source_y=radius * np.sin(angle),
        q=0.5 + 0.45 * u[:, 15], phi=np.pi * u[:, 16], gamma1=0.06 * (u[:, 17] - 0.5), gamma2=0.06 * (u[:, 18] - 0.5),
        psf_beta=np.array([2.5, 3.5, 4.5])[(3 * u[:, 19]).astype(int)],
    )  # fmt: skip
    table["source_R"] = table["source_R"].clip(lower=floor)
    host = {"host_index": ids, "galaxy_id": [f"benchmark-{i}" for i in ids]}
    for band, scale, depth in (("g", 1.1, 24.75), ("r", 1.0, 24.25), ("z", 0.93, 23.35)):
        host |= {f"psfsize_{band}": scale * (1.0 + 0.9 * u[:, 20]), f"mw_transmission_{band}": 0.9,
                 f"psfdepth_{band}": photometry.depth_to_ivar(depth), f"nobs_{band}": 4}  # fmt: skip
    return table, pd.DataFrame(host)


def make_strata(n, seed):
    """Draw `n` rows for each R_e of `RADII` and index of `INDICES`; all else is the prior's."""
    parts = []
    for k, (radius, index) in enumerate((r, i) for r in RADII for i in INDICES):
        table, host = make_job(n, seed, first_id=1_000_000 + 10_000 * k)
        parts.append((table.assign(source_R=radius, source_n=index), host))
    return tuple(pd.concat(p, ignore_index=True) for p in zip(*parts, strict=True)) if n else (None, None)


def make_reference(row, host, seed, size=RENDER_SIZE, band=BAND):
    """Return one row's image, its summed lensed flux, and how far the last two levels differ.

    Returns
    -------
    (ndarray of shape (size, size), float, float, float)
        Image and flux [nMgy]; difference of the images over the peak, and of the fluxes, relative.
    """
    last, residual, flux_error = None, np.inf, np.inf
    for tolerance, depth in LEVELS:
        options = {"bands": (band,), "dtype": np.float64, "size": size, "tolerance": tolerance, "depth": depth}
        images, flux = oracle.render_rows(row, host, None, seed, **options)
        image, total = images[0, 0], flux[0, 0]
        if last is not None:
            residual = np.abs(image - last[0]).max() / image.max()
            flux_error = max(abs(total / last[1] - 1), abs(image.sum() / last[0].sum() - 1))
            if residual < 0.25 * GOAL and flux_error < 0.25 * FLUX_GOAL:
                break
        last = image, total
    return image, total, residual, flux_error


def _make_part(part):
    """Return references of some rows, from the cache where they stand."""
    rows, hosts, seed, size, folder = part
    out = []
    for i in range(len(rows)):
        row, host = rows.iloc[i : i + 1], hosts.iloc[i : i + 1]
        text = json.dumps(
            [VERSION, GOAL, FLUX_GOAL, LEVELS, seed, size, BAND, row.to_dict("list"), host.to_dict("list")]
        )
        path = Path(folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz" if folder else None
        if path is not None and path.is_file():
            with np.load(path) as saved:
                out.append((saved["image"], *saved["numbers"]))
            continue
        image, *numbers = make_reference(row, host, seed, size)
        if path is not None:
            temporary = path.with_name(f"{path.stem}-{os.getpid()}.tmp.npz")
            np.savez(temporary, image=image, numbers=numbers)
            os.replace(temporary, path)
        out.append((image, *numbers))
    return out


def make_references(table, host, seed, size=RENDER_SIZE, folder=None, workers=None, say=True):
    """Return the references of a table's rows, made in processes; one thread each.

    Returns
    -------
    (ndarray of shape (N, size, size), ndarray of shape (N,), ndarray of shape (N,))
        Images, lensed fluxes [nMgy], and whether the reference stands still.
    """
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    own = host.set_index("host_index", drop=False).loc[table["host_index"]].reset_index(drop=True)
    starts = range(0, len(table), 8)
    parts = [(table.iloc[s : s + 8], own.iloc[s : s + 8], seed, size, folder) for s in starts]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context, begin, done = multiprocessing.get_context("spawn"), time.perf_counter(), []
    with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        for k, part in enumerate(pool.map(_make_part, parts)):
            done += part
            if say and k % 8 == 7:
                spent = time.perf_counter() - begin
                print(f"references {len(done)}/{len(table)}, {spent:.0f} s", file=sys.stderr, flush=True)
    images, flux, residual, flux_error = (np.array(v) for v in zip(*done, strict=True))
    return images, flux, (residual < 0.25 * GOAL) & (flux_error < 0.25 * FLUX_GOAL)


def compare(images, flux, reference, reference_flux):
    """Return max-residual/peak, error of the image's sum and error of the lensed flux, each of shape (N,)."""
    residual = np.abs(images - reference).max(axis=(1, 2)) / reference.max(axis=(1, 2))
    summed = np.abs(images.sum(axis=(1, 2), dtype=np.float64) / reference.sum(axis=(1, 2)) - 1)
    return residual, summed, np.abs(flux / reference_flux - 1)


def measure_same_points(table, host, seed, n=24, samples=4):
    """Return the largest difference of lensed brightness over its peak, engine in float64 against lenstronomy.

    Both are evaluated at the same positions, `samples` per pixel and axis over the whole stamp, so neither sampling nor
    convolution enters.
    """
    from lensaudit.lensing.mass import shoot_rays
    from lensaudit.lensing.sources import evaluate_sersic, make_components

    step = PIXEL_SCALE / samples
    axis = (np.arange(RENDER_SIZE * samples) - (RENDER_SIZE * samples - 1) / 2) * step
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    worst = 0.0
    for i in range(min(n, len(table))):
        row = table.iloc[i : i + 1].assign(n_clumps=0).reset_index(drop=True)
        names = ("source_x", "source_y", "source_R", "source_n", "source_q", "source_phi")
        components, _ = make_components(*(row[c].to_numpy() for c in names), dtype=torch.float64)
        lens = {k: torch.tensor(row[k].to_numpy(np.float64)) for k in ("theta_E", "q", "phi", "gamma1", "gamma2")}
        bx, by = shoot_rays(torch.as_tensor(x), torch.as_tensor(y), lens)
        ours = evaluate_sersic(bx, by, components).numpy()
        description = conversion.describe_row(row, host, seed)
        rays = LensModel(description["lens_model_list"]).ray_shooting(x, y, description["kwargs_lens"])
        theirs = oracle.make_source(description)(*rays)[0]
        worst = max(worst, np.abs(ours - theirs).max() / theirs.max())
    return worst


def measure_binning(table, host, seed, n=3):
    """Return the largest error over the peak that putting light on a grid makes, against direct sums of the PSF."""
    worst, centre = 0.0, np.arange(RENDER_SIZE)
    for i in range(min(n, len(table))):
        description = oracle.describe_row(table.iloc[i : i + 1], host, seed)
        x, y, light = oracle.collect_samples(description, RENDER_SIZE, 1e-5, 7)
        psf, flux = description["psf"][BAND], light.sum(axis=0)
        image = oracle.convolve_samples(x, y, flux, RENDER_SIZE, psf, BAND)
        brightest = np.argsort(image, axis=None)[-32:]
        rows, columns = np.unravel_index(brightest, image.shape)
        for j, k in zip(rows, columns, strict=True):
            kernel = conversion.evaluate_psf((centre[k] - x) * PIXEL_SCALE, (centre[j] - y) * PIXEL_SCALE, psf, BAND)
            worst = max(worst, abs(PIXEL_SCALE**2 * (kernel @ flux) - image[j, k]) / image.max())
    return worst


def summarise(label, chosen, errors):
    """Return one line of the table: number of rows and percentiles 50, 90, 99 of residual and of flux error."""
    if not chosen.any():
        return f"{label:30s} {0:5d}"
    cells = "".join(f" {v:9.1e}" for e in errors for v in np.percentile(e[chosen], (50, 90, 99)))
    return f"{label:30s} {chosen.sum():5d}{cells}"


def run(args):
    """Draw, render both ways, print the table and return the summary."""
    config = Config(device=args.device)
    drawn, hosts = make_job(args.n, args.seed, args.prior)
    strata, strata_hosts = make_strata(args.strata, args.seed)
    table = pd.concat([drawn, strata], ignore_index=True)
    host = pd.concat([hosts, strata_hosts], ignore_index=True)
    begin = time.perf_counter()
    reference, reference_flux, good = make_references(table, host, args.seed, RENDER_SIZE, args.cache, args.workers)
    spent = time.perf_counter() - begin
    images, flux = inject.render_table(table, host, config, args.seed, bands=(BAND,))
    errors = compare(images[:, 0], flux[:, 0], reference, reference_flux)
    double, double_flux = inject.render_table(table, host, config, args.seed, bands=(BAND,), dtype=torch.float64)
    rounding = np.abs(images[:, 0] - double[:, 0]).max(axis=(1, 2)) / double[:, 0].max(axis=(1, 2))
    from_prior, R, n = np.arange(len(table)) < args.n, table["source_R"].to_numpy(), table["source_n"].to_numpy()
    inside = from_prior & (R >= 0.05) & (n <= 2.0) & good
    print(f"{'':30s}  rows   max residual / peak           error of the image's sum      error of the lensed flux")
    print(f"{'':36s}" + "       50%       90%       99%" * 3)
    print(summarise("prior, R_e >= 0.05, n <= 2", inside, errors))
    print(summarise("prior, the rest", from_prior & good & ~inside, errors))
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        print(summarise(f"prior, {low:g} <= R_e < {high:g}", from_prior & good & (R >= low) & (R < high), errors))
    for radius in RADII:
        for index in INDICES:
            chosen = ~from_prior & good & (radius == R) & (n == index)
            print(summarise(f"strata, R_e = {radius:g}, n = {index:g}", chosen, errors))
    print("worst rows of the prior:")
    for k in np.argsort(-np.where(from_prior & good, errors[0], -1.0))[:5]:
        row, errors_of = table.iloc[k], f"residual {errors[0][k]:.1e}, flux {errors[2][k]:.1e}"
        print(f"  injection {row['injection_id']:.0f}: {errors_of}; R_e = {R[k]:.3f}, n = {n[k]:.2f}, "
              f"theta_E = {row['theta_E']:.2f}, {row['n_clumps']:.0f} clumps")  # fmt: skip
    lost = table.loc[~good]
    print(f"references that do not stand still: {len(lost)} of {len(table)}")
    for _, row in lost.iterrows():
        print(f"  injection {row['injection_id']:.0f}: R_e = {row['source_R']:.3f}, n = {row['source_n']:g}")
    same, binning = measure_same_points(table, host, args.seed), measure_binning(table, host, args.seed)
    print(f"float32 against float64, largest: {rounding.max():.1e} of the peak")
    print(f"brightness at the same points, float64, largest difference: {same:.1e} of the peak")
    print(f"reference: binning error {binning:.1e} of the peak, {spent:.0f} s")
    summary = {
        "n": int(inside.sum()), "seed": args.seed, "prior": args.prior, "device": str(inject.pick_device(args.device)),
        "residual_p50": np.percentile(errors[0][inside], 50), "residual_p90": np.percentile(errors[0][inside], 90),
        "residual_p99": np.percentile(errors[0][inside], 99), "residual_max": errors[0][inside].max(),
        "flux_error_p99": max(np.percentile(e[inside], 99) for e in errors[1:]), "float32": rounding.max(),
        "same_points": same, "binning": binning, "n_unsettled": len(lost), "n_rows": len(table),
    }  # fmt: skip
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in summary.items()}


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--strata", type=int, default=8, help="rows per R_e and n")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prior", default="collett")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--cache", default=None, help="folder of finished references")
    parser.add_argument("--out", default=None, help="file for the summary")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    summary = run(args)
    if args.out:
        Path(args.out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
