"""An injection is a pure function of the seed and its id: whoever renders it, with whatever beside it, however."""

import functools
import multiprocessing
import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from lensaudit import photometry
from lensaudit.audit import campaign
from lensaudit.config import Config, InjectionConfig
from lensaudit.injection import inject
from lensaudit.lensing import render, sample
from lensaudit.lensing.sources import make_image_bank

CONFIG, SEED, N = Config(device="cpu"), 9, 66
METHODS = [m for m in ("spawn", "fork", "forkserver") if m in multiprocessing.get_all_start_methods()]


class Checksums:
    """Stands in for a detector; its score is the checksum of an image's bits."""

    id = "checksums"

    def score(self, images):
        return np.array(list_checksums(images), dtype=np.float64)


def list_checksums(images):
    return [zlib.crc32(image.tobytes()) for image in images]


@functools.cache
def make_scene():
    """Rows of every kind side by side: discs, clumps, gradients, power laws, multipoles, subhaloes, quasars, images of
    a bank, inner images left out, round and elliptical PSFs and PSFs with wings.
    """
    generator, ids = np.random.default_rng(3), np.arange(N)

    def draw(low, high):
        return generator.uniform(low, high, N)

    hosts = pd.DataFrame({"host_index": ids, "galaxy_id": [f"g{i}" for i in ids], "mag_r": 19.0, "depth_r": 24.0})
    for band, depth in (("g", 24.7), ("r", 24.0), ("z", 23.2)):
        hosts = hosts.assign(**{f"psfsize_{band}": draw(0.9, 1.8), f"psfdepth_{band}": photometry.depth_to_ivar(depth),
                                f"mw_transmission_{band}": draw(0.7, 1.0), f"nobs_{band}": 3})  # fmt: skip
    table = pd.DataFrame({
        "injection_id": 1000 + 7 * ids, "host_index": generator.permutation(N), "theta_E": draw(0.6, 2.0),
        "q": draw(0.5, 0.95), "phi": draw(0, 3), "gamma1": draw(-0.05, 0.05), "gamma2": draw(-0.05, 0.05),
        "source_x": draw(-0.3, 0.3), "source_y": draw(-0.3, 0.3), "source_R": draw(0.05, 0.4), "source_n": draw(0.7, 3),
        "source_q": draw(0.4, 1.0), "source_phi": draw(0, 3), "mag_source_g": draw(22.5, 24), "mag_source_r": 23.0,
        "mag_source_z": draw(22, 23), "n_clumps": np.where(ids % 2, 6, 0), "clump_fraction": 0.3,
        "psf_beta": np.array([2.5, 3.5, 4.5])[ids % 3], "slope": np.where(ids % 11 == 3, 2.1, 2.0),
        "a3": np.where(ids % 7 == 1, 0.01, 0.0), "phi3": draw(0, 3), "a4": np.where(ids % 7 == 2, 0.02, 0.0),
        "phi4": draw(0, 3), "subhalo_theta_E": np.where(ids % 5 == 4, 0.05, 0.0), "subhalo_x": draw(-1, 1),
        "subhalo_y": draw(-1, 1), "subhalo_r_cut": 0.5, "gradient": np.where(ids % 4 == 1, 0.5, 0.0),
        "bank_index": np.where(ids % 6 == 0, ids // 6 % 2, -1), "inner_images": ids % 13 != 2,
        "psf_wings": ids % 4 == 3, "psf_e1": np.where(ids % 3 == 1, 0.05, 0.0),
        "psf_e2": np.where(ids % 3 == 1, -0.02, 0.0),
    })  # fmt: skip
    for band, share in zip("grz", (0.4, 0.4, 0.3), strict=True):
        table[f"quasar_fraction_{band}"] = np.where(ids % 9 == 5, share, 0.0)
    return table, hosts, generator.normal(0.0, 0.003, (N, 3, 65, 65)).astype(np.float32)


@functools.cache
def make_bank():
    """Two lopsided galaxies."""
    v, u = np.indices((31, 31)) - 15.0
    stamps = np.stack([np.exp(-0.5 * ((u - 2) ** 2 / 16 + v**2 / 6)), np.exp(-0.5 * (u**2 + (v - u / 3) ** 2) / 9)])
    stamps /= stamps.sum((1, 2), keepdims=True)
    centres = np.stack([(stamps * (g + 15.0)).sum((1, 2)) for g in (u, v)], axis=1)
    return make_image_bank(stamps, centres, np.array([4.0, 3.0]))


def render_rows(rows, config=CONFIG, **columns):
    """Return the images of some rows of the scene; also what a process of its own calls."""
    table, hosts, images = make_scene()
    torch.set_num_threads(1)
    return inject.inject(table.iloc[rows].assign(**columns), hosts, images[rows], config, SEED,
                         bank=make_bank())[0]  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return render_rows(np.arange(N))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_size_changes_no_bit(whole, batch):
    config = Config(device="cpu", injection=InjectionConfig(batch_size=batch))
    assert np.array_equal(render_rows(np.arange(N), config), whole)


@pytest.mark.parametrize("shards", [2, 5])
def test_cut_into_shards_changes_no_bit(whole, shards):
    parts = [render_rows(rows) for rows in np.array_split(np.arange(N), shards)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_order_of_rows_changes_no_bit(whole):
    order = np.random.default_rng(1).permutation(N)
    assert np.array_equal(render_rows(order), whole[order])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_of_torch_change_no_bit(whole, threads):
    torch.set_num_threads(threads)
    table, hosts, images = make_scene()
    again, _ = inject.inject(table, hosts, images, CONFIG, SEED, bank=make_bank())
    torch.set_num_threads(1)
    assert np.array_equal(again, whole)


@pytest.mark.parametrize(("workers", "block"), [(1, 64), (2, 64), (2, 7)])
def test_workers_of_a_campaign_change_no_bit(workers, block, tmp_path):
    table, hosts, images = make_scene()
    boxes = np.zeros_like(images)
    boxes[table["host_index"]] = images
    done = campaign.run_injections(table, hosts, boxes, Checksums(), CONFIG, tmp_path, block_rows=block,
                                   workers=workers, bank=make_bank())  # fmt: skip
    expected, _ = inject.inject(table, hosts, images, CONFIG, CONFIG.seed, bank=make_bank())
    assert list(done["logit"]) == list_checksums(expected)
    alone = campaign.run_injections(table, hosts, boxes, Checksums(), CONFIG, tmp_path / "alone", workers=1,
                                    bank=make_bank())  # fmt: skip
    pd.testing.assert_frame_equal(done, alone, check_exact=True)


@pytest.mark.parametrize("method", METHODS)
def test_start_method_of_a_process_changes_no_bit(whole, method):
    rows, kinds = np.arange(24), ("bank_index", "quasar_fraction_r", "a3", "a4", "subhalo_theta_E", "gradient")
    table = make_scene()[0].iloc[rows]
    assert all(table[kind].gt(0).any() for kind in kinds)
    assert (table["slope"] != 2).any() and not table["inner_images"].all() and table["psf_wings"].any()
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert np.array_equal(pool.apply(render_rows, (rows,)), whole[rows])


def test_another_seed_or_id_is_another_injection(whole):
    assert not np.array_equal(render_rows(np.arange(3), injection_id=[1, 2, 3]), whole[:3])


@pytest.mark.parametrize("columns", [
    {}, {"psf_e1": 0.05, "psf_e2": -0.02}, {"psf_wings": True}, {"inner_images": False},
    {"quasar_fraction_g": 0.4, "quasar_fraction_r": 0.4, "quasar_fraction_z": 0.3}, {"bank_index": 1},
], ids=["mixed", "elliptical PSF", "PSF wings", "no inner images", "quasar", "bank"])  # fmt: skip
def test_every_kind_of_row_stands_alone(columns):
    rows = np.arange(8)
    together = render_rows(rows, **columns)
    apart = [render_rows(rows[k : k + 1], **columns) for k in rows[::-1]][::-1]
    assert np.array_equal(together, np.concatenate(apart))


def test_torch_and_compiled_code_are_the_same_engine(monkeypatch):
    table, hosts, _ = make_scene()
    rows = table.iloc[:12]
    compiled, flux = inject.render_table(rows, hosts, CONFIG, SEED, bank=make_bank())
    assert sample.compiled_sample is not None and render.compiled_fold is not None
    monkeypatch.setattr(sample, "compiled_sample", None)
    monkeypatch.setattr(render, "compiled_fold", None)
    plain, plain_flux = inject.render_table(rows, hosts, CONFIG, SEED, bank=make_bank())
    peak = compiled.max(axis=(2, 3))
    assert (np.abs(plain - compiled).max(axis=(2, 3)) / peak).max() < 5e-5
    assert np.abs(plain_flux / flux - 1.0).max() < 5e-5
    again, _ = inject.render_table(rows.iloc[np.arange(12)[::-1]], hosts, CONFIG, SEED, batch_size=5, bank=make_bank())
    assert (np.abs(again[::-1] - plain).max(axis=(2, 3)) / peak).max() < 1e-5
