"""Speed of the injection engine beside lenstronomy: the same job, the same cores, alternating in the same run.

Usage: python benchmarks/injection_speed.py [--n 256] [--seed 1] [--cores 2] [--cache DIR] [--json] [--out FILE]

Job: three bands, 101-px stamps, SIE + shear, Sersic disc with six clumps (R_e >= 0.05 arcsec, otherwise the fiducial
prior's sources), a Moffat of its own per stamp and band. Peers get one process per core, the engine as many threads or
processes, whichever is faster:

ImageModel   lenstronomy's ImageModel, one per band, its supersampling raised row by row until it is as accurate as the
             engine's 99th percentile; its kernels are given to it for nothing.
best use     one lenstronomy ray-shooting and two brightness maps for three bands, one FFT per map and band at 4 samples
             per pixel, the kernels' transforms in closed form; accurate to what is printed.

With --detector FOLDER (a checkpoint, such as artifacts/demo/04_training/checkpoint) injections of the fiducial prior
are also rendered into 65-px hosts and scored by `audit.campaign.run_injections`, arcs unmeasured: the JSON key
render_and_score_77000_s, measured in full with --scored 77000, else from equal parts of 1,024 (4,096 rows by default),
of which the fastest and slowest are printed too. The checkpoint's loading and the first part, which compiles, do not
count. --only-scored leaves out all else.
"""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from injection_accuracy import compare, make_job, make_references
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from scipy.fft import irfft2, next_fast_len, rfft2

from lensaudit.audit import campaign
from lensaudit.config import Config
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.detectors.scoring import load_detector
from lensaudit.injection import inject, oracle
from lensaudit.injection.noise import draw_noise
from lensaudit.lensing import render, sample

SIZE = 101
LADDER = (4, 6, 8, 12, 16, 24)  # supersamplings of ImageModel that are tried
CAMPAIGN, PART, N_HOSTS = 77_000, 1024, 512  # injections of the goal, of a timed part, hosts they share
KERNEL = 63  # pixels; not renormalised, so that only the wings beyond are missing


def make_kernel(psf, band, s):
    """Return the PSF image at `s` samples per pixel with which ImageModel's pixel average gives the coadd's PSF.

    Notes
    -----
    ImageModel averages the convolved samples over the pixel, but a coadd's PSF holds the pixel already. So that average
    is divided out, where it does not vanish.
    """
    length = next_fast_len(2 * KERNEL * s, real=True)
    offset = np.fft.fftfreq(length, 1.0 / length) * PIXEL_SCALE / s
    spectrum = rfft2((PIXEL_SCALE / s) ** 2 * oracle.evaluate_psf(offset[None], offset[:, None], psf, band))

    def invert_mean(cycles):
        mean = np.sinc(cycles) / np.sinc(cycles / s)
        return np.where(np.abs(cycles) < 0.95, 1.0 / np.where(np.abs(mean) > 0.02, mean, 1.0), 0.0)

    rows, columns = np.fft.fftfreq(length, 1.0 / s), np.fft.rfftfreq(length, 1.0 / s)
    kernel = irfft2(spectrum * invert_mean(rows)[:, None] * invert_mean(columns)[None], s=(length, length))
    half = KERNEL * s // 2
    return np.roll(kernel, (half, half), axis=(0, 1))[: 2 * half + 1, : 2 * half + 1]


def render_by_image_model(description, kernels, s, bands=BANDS, size=SIZE):
    """Render a row with lenstronomy's ImageModel, one per band, convolved at `s` samples per pixel."""
    images = []
    for band in bands:
        corner = -(size // 2) * PIXEL_SCALE
        data = ImageData(np.zeros((size, size)), ra_at_xy_0=corner, dec_at_xy_0=corner,
                         transform_pix2angle=PIXEL_SCALE * np.eye(2))  # fmt: skip
        psf = PSF("PIXEL", kernel_point_source=kernels[band], point_source_supersampling_factor=s,
                  kernel_point_source_normalisation=False)  # fmt: skip
        numerics = {"supersampling_factor": s, "supersampling_convolution": True, "supersampling_kernel_size": None}
        names, light = [], []
        for group in description["groups"].values():
            names += group["light_model_list"]
            light += [k | {"amp": k["amp"] * group["flux"][band]} for k in group["kwargs_light"]]
        model = ImageModel(data, psf, LensModel(description["lens_model_list"]), LightModel(names),
                           kwargs_numerics=numerics)  # fmt: skip
        images.append(model.image(description["kwargs_lens"], light, [], []))
    return np.stack(images)


def render_best_use(description, s=4, size=SIZE):
    """Render a row with one lenstronomy ray-shooting for three bands and one transform per map and band."""
    length, period = size * s, next_fast_len((size + 15) * s, real=True)
    grid = (np.arange(length) - (length - 1) / 2) * PIXEL_SCALE / s
    xx, yy = (a.ravel() for a in np.meshgrid(grid, grid))
    bx, by = LensModel(description["lens_model_list"]).ray_shooting(xx, yy, description["kwargs_lens"])
    total = 0.0
    for group in description["groups"].values():
        light = LightModel(group["light_model_list"]).surface_brightness(bx, by, group["kwargs_light"])
        fine = ((PIXEL_SCALE / s) ** 2 * light).reshape(length, length).astype(np.float32)
        flux = np.array([group["flux"][b] for b in BANDS], dtype=np.float32)
        total = total + flux[:, None, None] * rfft2(fine, s=(period, period))
    # Samples lie half a step off the pixels' centres; the phase moves the result there.
    rows, columns = (np.exp(1j * np.pi * f(period)).astype(np.complex64) for f in (np.fft.fftfreq, np.fft.rfftfreq))
    total = total * (s**2 * rows[:, None] * columns[None]).astype(np.complex64)  # flux per pixel, not per sample
    image = irfft2(total * make_spectra(description, period, s), s=(period, period))
    start = s // 2 - 1
    return image[:, start : start + length : s, start : start + length : s]


def make_spectra(description, period, s):
    """Return the transforms of a row's Moffats, exp(-x) times a polynomial in x = k alpha for beta = 2.5, 3.5, 4.5."""
    half = (2 * np.pi * s / PIXEL_SCALE * np.arange(period // 2 + 1) / period).astype(np.float32)
    k = np.hypot(half[:, None], half[None])
    mirror = np.minimum(np.arange(period), period - np.arange(period))
    out = []
    for band in BANDS:
        psf = description["psf"][band]
        x = k * np.float32(psf["alpha"])
        series = {2.5: 1 + x, 3.5: 1 + x + x * x / 3, 4.5: 1 + x + x * x * (0.4 + x / 15)}[psf["beta"]]
        out.append((np.exp(-x) * series)[mirror])
    return np.stack(out)


# Dividing out the pixel's average makes the kernel ring below zero by parts in a million.
warnings.filterwarnings("ignore", message="Input PSF model has at least one negative element")
JOB = {}  # a worker's own copy of the job


def prepare_worker(table, host, seed, device, steps):
    """Keep the job in a worker process, with the kernels that peers get for nothing, and warm everything up."""
    torch.set_num_threads(1)
    descriptions = [oracle.describe_row(table.iloc[i : i + 1], host, seed) for i in range(len(table))]
    JOB.update(table=table, host=host, seed=seed, config=Config(device=device), steps=steps, row=descriptions)
    inject.render_table(table[:8], host, JOB["config"], seed, size=SIZE)
    render_best_use(descriptions[0])
    kernels = {b: make_kernel(p, b, 4) for b, p in descriptions[0]["psf"].items()}
    render_by_image_model(descriptions[0], kernels, 4)


def run_worker(task):
    """Do one share of a job in a worker process; returns the seconds its rendering took."""
    kind, rows = task
    if kind == "engine":
        start = time.perf_counter()
        inject.render_table(JOB["table"].iloc[rows], JOB["host"], JOB["config"], JOB["seed"], size=SIZE)
        return time.perf_counter() - start
    spent = 0.0
    for i in rows:
        row = JOB["row"][i]
        if kind == "ImageModel":
            s = int(JOB["steps"][i])
            kernels = {b: make_kernel(p, b, s) for b, p in row["psf"].items()}
            start = time.perf_counter()
            render_by_image_model(row, kernels, s)
        else:
            start = time.perf_counter()
            render_best_use(row)
        spent += time.perf_counter() - start
    return spent


def read_peak():
    """Return the peak memory [MB] of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage also counts what the parent had at the fork
        line = next(row for row in status.read_text(encoding="ascii").splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(table, host, seed, device):
    """Return the peak memory [MB] of a process before and after it has rendered the table in one call."""
    torch.set_num_threads(1)
    before = read_peak()
    inject.render_table(table, host, Config(device=device), seed, size=SIZE)
    return before, read_peak()


def time_pool(pool, kind, n, cores):
    """Return stamps per second of `n` rows shared evenly by one process per core, by the slowest process' own clock."""
    shares = np.array_split(np.arange(n), cores)
    futures = [pool.submit(run_worker, (kind, share)) for share in shares]
    return n / max(f.result() for f in futures)


def time_threads(table, host, config, seed, cores, size=SIZE, batch=None):
    """Return the engine's stamps per second in threads over blocks, as `audit.campaign.run_injections` runs it."""
    block = batch or max(1, -(-len(table) // cores))
    parts = [table.iloc[s : s + block] for s in range(0, len(table), block)]
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda part: inject.render_table(part, host, config, seed, size=size, batch_size=batch), parts))
    return len(table) / (time.perf_counter() - start)


def measure_steps(table, host, config, seed):
    """Return the share of each step of the engine in one thread, and milliseconds per stamp with noise."""
    places = {"table": (inject, "prepare"), "sampling": (render, "sample_maps"), "PSF": (inject, "make_transfer"),
              "transform": (render, "transform_maps")}  # fmt: skip
    if render.compiled_fold is not None and config.device == "cpu":
        places |= {"bands and fold": (render.compiled_fold, "fold_bands"), "inverse": (torch.fft, "irfft2")}
    else:
        places |= {"fold and inverse": (render, "fold_spectrum")}
    spent, originals = dict.fromkeys(places, 0.0), {}

    def clock(step, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            out = function(*args, **kwargs)
            spent[step] += time.perf_counter() - start
            return out

        return timed

    for step, (module, name) in places.items():
        originals[step] = getattr(module, name)
        setattr(module, name, clock(step, originals[step]))
    try:
        start = time.perf_counter()
        images, _ = inject.render_table(table, host, config, seed, size=SIZE)
        total = time.perf_counter() - start
    finally:
        for step, (module, name) in places.items():
            setattr(module, name, originals[step])
    start = time.perf_counter()
    draw_noise(table["injection_id"].to_numpy(), np.sqrt(np.maximum(images, 0.0) / 1e4), seed)
    spent["noise"] = time.perf_counter() - start
    spent["the rest"] = total - sum(v for k, v in spent.items() if k != "noise")
    return {k: v / (total + spent["noise"]) for k, v in spent.items()}, 1e3 * (total + spent["noise"]) / len(table)


def count_work(table, host, config, seed):
    """Return rays, brightness evaluations, transform operations and bytes per stamp of the engine's own algorithm."""
    counts, compiled = {"rays": 0, "lights": 0}, sample.compiled_sample
    shoot, evaluate = sample.shoot_rays, sample.evaluate_sersic

    def count_rays(x, y, lens):
        counts["rays"] += int(np.prod(np.broadcast_shapes(x.shape, y.shape)))
        return shoot(x, y, lens)

    def count_lights(x, y, component):
        counts["lights"] += x.numel()
        return evaluate(x, y, component)

    try:
        sample.compiled_sample, sample.shoot_rays, sample.evaluate_sersic = None, count_rays, count_lights
        inject.render_table(table, host, config, seed, size=SIZE)
    finally:
        sample.compiled_sample, sample.shoot_rays, sample.evaluate_sersic = compiled, shoot, evaluate
    planes = 1 + float((table["n_clumps"] > 0).mean())
    period = render.choose_period(SIZE)
    fine, native = (2 * period) ** 2, period**2
    flops = 2.5 * (planes * fine * np.log2(fine) + 3 * native * np.log2(native)) + 3 * 2 * native * 16
    # Each array is written once and read once: maps, spectra, three transfers, three folded spectra and images.
    moved = 2 * 4 * (planes * fine + planes * 4 * native + 3 * 2 * native + 3 * native + 3 * SIZE**2)
    return {k: v / len(table) for k, v in counts.items()} | {"flops": flops, "bytes": moved}


def measure_scoring(args):
    """Return the seconds to render and score `CAMPAIGN` injections, and how many were timed, as summary entries."""
    n = max(-(-args.scored // PART), 4) * PART if args.scored < CAMPAIGN else args.scored
    table, host = make_job(PART + n, args.seed)
    table = table.assign(host_index=table["injection_id"] % N_HOSTS)
    host = host[:N_HOSTS].assign(depth_r=24.25, mag_r=19.0)
    shape = (N_HOSTS, len(BANDS), RENDER_SIZE, RENDER_SIZE)
    boxes = np.random.default_rng(args.seed).normal(0.0, 0.01, shape).astype(np.float32)
    detector, config, seconds = load_detector(args.detector, args.device), Config(device=args.device), []
    edges = range(PART, PART + n + 1, PART if args.scored < CAMPAIGN else n)
    with tempfile.TemporaryDirectory() as folder:
        for low, high in ((0, PART), *itertools.pairwise(edges)):
            part = table.iloc[low:high].reset_index(drop=True)
            start = time.perf_counter()
            # As many blocks as keep every core busy to the end.
            campaign.run_injections(part, host, boxes, detector, config, f"{folder}/{low}", workers=args.cores,
                                    block_rows=min(512, -(-PART // args.cores)), measure=False)  # fmt: skip
            seconds.append((time.perf_counter() - start) * CAMPAIGN / (high - low))
    timed = np.array(seconds[1:])
    whole, full = float(np.median(timed)), args.scored >= CAMPAIGN
    how = "measured in full" if full else f"from {n} in {len(timed)} parts"
    print(f"render and score {CAMPAIGN} injections, {args.cores} cores, {args.device}: {whole:.0f} s "
          f"({timed.min():.0f}-{timed.max():.0f}), {how}")  # fmt: skip
    return {"render_and_score_77000_s": whole, "scored": n, "scored_in_full": full,
            "scored_parts_s": [float(t) for t in timed], "detector": detector.id}  # fmt: skip


def time_call(function, repeats=7):
    """Return the shortest of several calls [s]."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def measure_floor(work):
    """Return the milliseconds per stamp and core below which this machine cannot do the counted work.

    Every ray at the speed of a vectorised arc tangent and logarithm, every brightness at that of an exponential (in
    cache, float32), transforms at the speed of a large real FFT, bytes at that of a copy; steps after each other.
    """
    x = torch.rand(2**14)
    ray = time_call(lambda: (torch.atan(x), torch.log(x)), 200) / len(x)
    light = time_call(lambda: torch.exp(x), 200) / len(x)
    plane, large = torch.rand(8, 256, 256), torch.rand(2**24)
    flop = time_call(lambda: torch.fft.rfft2(plane)) / (8 * 2.5 * 256**2 * 16)
    target = torch.empty_like(large)
    byte = time_call(lambda: target.copy_(large)) / (2 * 4 * len(large))
    return {"sampling": 1e3 * (work["rays"] * ray + work["lights"] * light), "transforms": 1e3 * work["flops"] * flop,
            "memory": 1e3 * work["bytes"] * byte}  # fmt: skip


def choose_supersampling(table, host, seed, references, limit):
    """Return, for each row, the supersampling at which ImageModel is within `limit` of the reference, and how far.

    Rows that are not at the end of `LADDER` stand with its last step, so that the peer's time is a lower bound.
    """
    steps, residuals = [], []
    for i, reference in enumerate(references):
        row = oracle.describe_row(table.iloc[i : i + 1], host, seed)
        for s in LADDER:
            image = render_by_image_model(row, {"r": make_kernel(row["psf"]["r"], "r", s)}, s, ("r",))[0]
            residual = np.abs(image - reference).max() / reference.max()
            if residual <= limit:
                break
        steps.append(s)
        residuals.append(residual)
    return np.array(steps), np.array(residuals)


def run(args):
    """Run the benchmark and return its summary."""
    config = Config(device=args.device)
    table, host = make_job(args.n, args.seed, floor=0.05)
    table = table.assign(n_clumps=6, clump_fraction=0.3)
    start = time.perf_counter()
    inject.render_table(table[:8], host, config, args.seed, size=SIZE)
    first_call = time.perf_counter() - start
    n_reference = min(args.references, args.n)
    part = table[:n_reference]
    references, fluxes, good = make_references(part, host, args.seed, SIZE, args.cache, args.cores, say=False)
    images, flux = inject.render_table(part, host, config, args.seed, size=SIZE)
    errors = [e[good] for e in compare(images[:, 1], flux[:, 1], references, fluxes)]
    residual, flux_error = np.percentile(errors[0], 99), max(np.percentile(e, 99) for e in errors[1:])
    few = min(args.peers, n_reference)
    steps, reached = choose_supersampling(part[:few], host, args.seed, references[:few], residual)
    best = np.array([render_best_use(oracle.describe_row(part[i : i + 1], host, args.seed))[1] for i in range(few)])
    best_error = compare(best, fluxes[:few], references[:few], fluxes[:few])[0]

    rates = {k: [] for k in ("threads", "processes", "ImageModel", "best use")}
    context, given = multiprocessing.get_context("spawn"), (table, host, args.seed, args.device, steps)
    with concurrent.futures.ProcessPoolExecutor(args.cores, context, prepare_worker, given) as pool:
        time_pool(pool, "best use", 2 * args.cores, args.cores)
        for _ in range(args.rounds):  # alternating, so that a busy machine slows all alike
            rates["threads"].append(time_threads(table, host, config, args.seed, args.cores))
            rates["best use"].append(time_pool(pool, "best use", min(args.n, 12 * args.cores), args.cores))
            rates["processes"].append(time_pool(pool, "engine", args.n, args.cores))
            rates["ImageModel"].append(time_pool(pool, "ImageModel", few, args.cores))
    rate = {name: float(np.median(values)) for name, values in rates.items()}
    engine = max(rate["threads"], rate["processes"])
    way = max(("threads", "processes"), key=rate.get)
    print(f"{args.cores} cores, {SIZE}-px stamps, three bands, Sersic + six clumps; medians of {args.rounds} rounds")
    print(f"{'':38s} stamps/s   engine is faster by   max residual / peak")
    accuracy = {"threads": errors[0], "processes": errors[0], "ImageModel": reached, "best use": best_error}
    for name, error in accuracy.items():
        label = f"engine, {name}" if name in ("threads", "processes") else f"lenstronomy {name}"
        note = f"99 %: {np.percentile(error, 99):.1e}, median {np.median(error):.1e}"
        print(f"{label:38s} {rate[name]:8.1f}   {engine / rate[name]:19.1f}   {note}")
    behind = int((reached > residual).sum())
    print(
        f"ImageModel's samples per pixel: {', '.join(map(str, steps))} ({behind} of {few} rows still worse at the last)"
    )
    print(f"engine's flux error, 99 %: {flux_error:.1e}; first call {first_call:.1f} s")
    variants = {}
    for family, clumps in (("sersic", 0), ("clumpy", 6)):
        for size in (RENDER_SIZE, SIZE):
            for batch in args.batches:
                job = table.assign(n_clumps=clumps)
                found = [
                    time_threads(job, host, config, args.seed, args.cores, size, batch) for _ in range(args.rounds)
                ]
                variants[f"{family} {size} px batch {batch}"] = float(np.median(found))
    for name, value in variants.items():
        print(f"  {name:32s} {value:8.1f} stamps/s in threads")
    shares, milliseconds = measure_steps(table, host, config, args.seed)
    print(f"one thread, with noise: {milliseconds:.2f} ms/stamp: "
          + ", ".join(f"{k} {100 * v:.0f} %" for k, v in shares.items()))  # fmt: skip
    with concurrent.futures.ProcessPoolExecutor(1, context) as alone:
        before, memory = alone.submit(measure_memory, table, host, args.seed, args.device).result()
    work = count_work(table[:16], host, Config(device="cpu"), args.seed)
    floor = measure_floor(work)
    print(f"work per stamp: {work['rays']:.0f} rays, {work['lights']:.0f} brightnesses, "
          f"{work['flops'] / 1e6:.1f} MFLOP of transforms, {work['bytes'] / 1e6:.1f} MB")  # fmt: skip
    print(f"floor: {sum(floor.values()):.2f} ms/stamp and core ("
          + ", ".join(f"{k} {v:.2f}" for k, v in floor.items()) + f"); peak memory {memory:.0f} MB, "
          f"{before:.0f} MB of it before the first stamp")  # fmt: skip
    return {
        "stamps_per_s": engine, "ratio_imagemodel": engine / rate["ImageModel"],
        "ratio_best_use": engine / rate["best use"], "residual_p99": float(residual),
        "flux_error_p99": float(flux_error), "device": str(inject.pick_device(args.device)), "peak_memory_mb": memory,
        "memory_before_mb": before,
        "cores": args.cores, "way": way,
        "rates": rate, "imagemodel_supersampling": [int(s) for s in steps],
        "imagemodel_rows_not_reached": behind, "best_use_residual_p99":
        float(np.percentile(best_error, 99)), "first_call_s": first_call, "variants": variants, "steps": shares,
        "ms_per_stamp_one_thread_with_noise": milliseconds, "work": work, "floor_ms": floor, "seed": args.seed,
        "n": args.n, "n_references": int(good.sum()),
    }  # fmt: skip


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=8, help="rows on which ImageModel is timed")
    parser.add_argument("--references", type=int, default=128, help="rows on which the accuracy is measured")
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--detector", default=None, help="folder of a checkpoint, to render and score")
    parser.add_argument("--scored", type=int, default=4096, help="injections rendered and scored, at least 4096")
    parser.add_argument("--only-scored", action="store_true")
    parser.add_argument("--cache", default=None, help="folder of finished references")
    parser.add_argument("--out", default=None, help="file for the summary")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the worker processes: one core each
    torch.set_num_threads(1)
    summary = {"seed": args.seed, "cores": args.cores} if args.only_scored else run(args)
    if args.detector:
        summary |= measure_scoring(args)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
