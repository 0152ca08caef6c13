"""Stamps per second of the simulated sky, with lenstronomy drawing the same stamp as the peer.

Run it after the survey stands: ``python benchmarks/stamp_speed.py [profile] [n]``. The peer draws three bands of the
target galaxy and its neighbours with ImageModel at the native pixel and adds white noise, which is less work: no
correlated noise, no background objects, no halos.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from lensaudit.artifacts import find_root, read_table
from lensaudit.config import load_config
from lensaudit.simsky.conditions import make_psf
from lensaudit.simsky.lenses import lens_arguments, make_source
from lensaudit.simsky.pixels import SkyPixels

STEP = 0.262  # arcsec per pixel


def draw_with_lenstronomy(rows, conditions, lens=None):
    """Draw three bands of some galaxies, and a lens's arcs, by lenstronomy's own ImageModel."""
    light, keywords, arcs = ["SERSIC_ELLIPSE"] * len(rows), [], None
    first = rows.iloc[0]
    for r in rows.itertuples():
        e = (1 - r.q) / (1 + r.q)
        x = -(r.ra - first["ra"]) * np.cos(np.radians(r.dec)) * 3600
        keywords.append(
            {
                "amp": 1.0,
                "R_sersic": r.R * np.sqrt(r.q),
                "n_sersic": r.n_sersic,
                "e1": e * np.cos(2 * r.pa),
                "e2": e * np.sin(2 * r.pa),
                "center_x": x,
                "center_y": (r.dec - first["dec"]) * 3600,
            }
        )
    lens_model, lens_keywords, source_model, source_keywords = None, None, None, None
    if lens is not None:
        smooth, clumpy, scale = make_source(lens["source_key"], lens["source_R"], lens["source_q"], lens["source_phi"])
        lens_model, lens_keywords = LensModel(["EPL", "SHEAR"]), lens_arguments(lens)
        source_model = LightModel(["INTERPOL"] * 2)
        arcs = {"amp": 1.0, "center_x": lens["source_x"], "center_y": lens["source_y"], "phi_G": 0.0, "scale": scale}
        source_keywords = [{"image": smooth, **arcs}, {"image": clumpy, **arcs}]
    images = []
    for band in "grz":
        psf = make_psf(*(conditions[f"{k}_{band}"] for k in ("fwhm", "beta", "psf_e1", "psf_e2")), band, 63)
        data = ImageData(image_data=np.zeros((101, 101)), ra_at_xy_0=-50 * STEP, dec_at_xy_0=-50 * STEP,
                         transform_pix2angle=np.eye(2) * STEP)  # fmt: skip
        model = ImageModel(data, PSF("PIXEL", kernel_point_source=psf), lens_model, source_model, LightModel(light))
        image = model.image(lens_keywords, source_keywords, keywords)
        images.append(image + np.random.default_rng(0).normal(0, 0.01, image.shape))
    return np.stack(images)


def draw_part(task):
    """Draw one process's share by one engine; returns its number of stamps, start and end."""
    engine, folder, seed, part = task
    if engine == "simsky":
        source = SkyPixels(folder, seed)
        source.read(part.iloc[:2])  # loads the tables
        started = time.time()
        source.read(part)
        return len(part), started, time.time()
    truth = dict(list(read_table(folder / "truth" / "galaxies.parquet").groupby("brickid")))
    conditions = read_table(folder / "truth" / "conditions.parquet").set_index(["brickid", "quarter"])
    lenses = {r["galaxy_id"]: r for r in read_table(folder / "truth" / "lenses.parquet").to_dict("records")}
    started = time.time()
    for row in part.itertuples():
        near = truth[row.brickid]
        apart = np.hypot((near["ra"] - row.ra) * np.cos(np.radians(row.dec)), near["dec"] - row.dec) * 3600
        chosen = near[(apart < 17) & (near["type"] != "PSF")].assign(apart=apart).sort_values("apart")
        draw_with_lenstronomy(chosen, conditions.loc[(row.brickid, row.quarter)], lenses.get(row.galaxy_id))
    return len(part), started, time.time()


def time_engine(engine, folder, seed, rows, workers):
    """Return stamps per second of an engine over `workers` processes, imports and loading left out."""
    tasks = [(engine, folder, seed, rows.iloc[p]) for p in np.array_split(np.arange(len(rows)), workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return sum(n / (end - start) for n, start, end in pool.map(draw_part, tasks))


def main(profile="demo", n=600):
    config = load_config(profile)
    folder = find_root() / "artifacts" / profile / "00_survey"
    truth = read_table(folder / "truth" / "galaxies.parquet")
    bright = truth[(truth["flux_z"] > 10) & (truth["type"] != "PSF")]
    known = bright[bright["is_catalogued"] & bright["is_lens"]]
    chosen = {
        "galaxies": bright[~bright["is_lens"]].sample(n, random_state=0),
        "lenses": known.sample(min(n // 3, len(known)), random_state=0),
    }
    print(f"{'stamps':10s} {'processes':>9s} {'simsky /s':>10s} {'lenstronomy /s':>15s} {'ratio':>6s}")
    for name, rows in chosen.items():
        for workers in (1, 2):
            peer = time_engine("lenstronomy", folder, config.seed, rows.iloc[: 40 * workers], workers)
            speed = time_engine("simsky", folder, config.seed, rows, workers)
            print(f"{name:10s} {workers:9d} {speed:10.0f} {peer:15.1f} {speed / peer:6.1f}")


if __name__ == "__main__":
    main(*(sys.argv[1:2] or ["demo"]), *(int(v) for v in sys.argv[2:3]))
