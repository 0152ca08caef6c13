"""Training: it learns, repeats itself bit for bit, and goes on after kill -9 as if nothing had happened."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lensaudit.artifacts import UserError, read_json
from lensaudit.config import load_config
from lensaudit.detectors import architectures, training
from lensaudit.detectors.scoring import choose_device, load_detector, read_tensors, score_table
from lensaudit.detectors.training import (
    compute_loss,
    draw_batches,
    make_companion,
    train_detector,
    train_detectors,
    turn_images,
)

HASH = "0123456789abcdef" * 4


class ArrayStore:
    """Stamps in memory, read like a Store."""

    def __init__(self, images):
        self.images = images

    def read_box(self, cutout_paths, size):
        start = self.images.shape[-1] // 2 - size // 2
        rows = [int(path.partition("#")[2]) for path in cutout_paths]
        return self.images[rows][:, :, start : start + size, start : start + size]


def make_small():
    """A body of two strided convolutions, for speed."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 7, 4, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return body, 8


def make_data(n=160, seed=5):
    """Noise, with a ring of radius 7 px around the centre of every lens."""
    stream = np.random.default_rng(seed)
    images = stream.normal(0, 0.02, (n, 3, 65, 65)).astype(np.float32)
    label = (np.arange(n) % 4 == 0).astype(np.int64)
    y, x = np.indices((65, 65)) - 32
    images[label == 1] += 0.1 * np.exp(-0.5 * (np.hypot(x, y) - 7) ** 2).astype(np.float32)
    table = pd.DataFrame({
        "galaxy_id": [f"10000-7-{i}" for i in range(n)],
        "cutout_path": [f"stamps/shard-0000.npy#{i}" for i in range(n)],
        "label": label, "split": np.where(np.arange(n) < 0.7 * n, "train", "val"), "sample_weight": 1.0,
        "quality_ok": True, "pool": np.where(np.arange(n) % 7 == 0, "N2", "N1"),
    })  # fmt: skip
    return table, ArrayStore(images)


def make_config(**changes):
    config = load_config("demo", device="cpu")
    changes = {"architecture": "small", "epochs": 3, "batch_size": 32, "learning_rate": 1e-2} | changes
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(architectures.BUILDERS, "small", make_small)


def train(folder, config=None, data=None):
    table, store = data or make_data()
    return train_detector(table, store, config or make_config(), folder, HASH, "cpu")


def test_learns_a_separable_set_and_is_reproduced_by_scoring(tmp_path):
    data = make_data()
    metrics = train(tmp_path, make_config(epochs=8), data)
    assert metrics["val_auc"].max() > 0.99
    assert metrics["is_best"].sum() == 1
    detector = load_detector(tmp_path / "checkpoint", "cpu")
    assert HASH[:12] in detector.id
    table, store = data
    val = table[table["split"] == "val"]
    scores = score_table(detector, store, val)
    assert (scores["galaxy_id"] == val["galaxy_id"].to_numpy()).all()
    merged = scores.merge(val, on="galaxy_id")
    lens, other = merged["logit"][merged["label"] == 1], merged["logit"][merged["label"] == 0]
    auc = (lens.to_numpy()[:, None] > other.to_numpy()).mean()
    assert auc == pytest.approx(metrics["val_auc"].max(), abs=1e-9)
    assert scores["score"].to_numpy() == pytest.approx(1 / (1 + np.exp(-scores["logit"].to_numpy(float))))


def test_repeats_bit_for_bit_whatever_the_row_order(tmp_path):
    table, store = make_data()
    first = train(tmp_path / "a", data=(table, store))
    second = train(tmp_path / "b", data=(table.sample(frac=1, random_state=3), store))
    pd.testing.assert_frame_equal(first, second)
    one, two = (tmp_path / name / "checkpoint" / "weights.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_trained_together_or_alone_gives_the_same_bits(tmp_path):
    table, store = make_data(48)
    own = make_config(architecture="resnet18", epochs=1)
    configs, folders = (own, make_companion(own)), (tmp_path / "one", tmp_path / "two")
    threads = torch.get_num_threads()
    metrics = train_detectors(table, store, configs, folders, HASH, "cpu")
    try:
        torch.set_num_threads(max(1, threads // 2))
        for config, folder, found in zip(configs, folders, metrics, strict=True):
            alone = train_detector(table, store, config, tmp_path / f"alone-{config.seed}", HASH, "cpu")
            pd.testing.assert_frame_equal(found, alone)
            weights = "checkpoint/weights.safetensors"
            assert (folder / weights).read_bytes() == (tmp_path / f"alone-{config.seed}" / weights).read_bytes()
    finally:
        torch.set_num_threads(threads)


def test_kill_during_the_write_of_the_state_then_resume(tmp_path):
    """SIGKILL half-way through writing the state of epoch 2; the resumed run ends on the same bits."""
    script = textwrap.dedent("""
        import os, signal, sys
        import safetensors.torch
        sys.path.insert(0, sys.argv[1])
        import test_training as t
        whole, calls = safetensors.torch.save_file, []
        def save_half(tensors, path, metadata=None):
            whole(tensors, path, metadata=metadata)
            calls.append(path)
            if len(calls) == 2:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        safetensors.torch.save_file = save_half
        t.architectures.BUILDERS["small"] = t.make_small
        t.torch.set_num_threads(int(sys.argv[3]))
        t.train(t.Path(sys.argv[2]))
    """)
    here = str(Path(__file__).parent)
    killed = tmp_path / "killed"
    result = subprocess.run(
        [sys.executable, "-c", script, here, str(killed), str(torch.get_num_threads())], capture_output=True, text=True
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not (killed / "checkpoint").exists()
    state = killed / "state" / "training.safetensors"
    assert read_tensors(state)  # whole: that of epoch 1
    resumed, straight = train(killed), train(tmp_path / "straight")
    pd.testing.assert_frame_equal(resumed, straight)
    names = ("weights.safetensors", "metrics.csv", "model.json", "config.json", "preprocessing.json")
    for name in names:
        assert (killed / "checkpoint" / name).read_bytes() == (tmp_path / "straight/checkpoint" / name).read_bytes()
    assert [path.name for path in state.parent.iterdir()] == ["training.safetensors"]


def test_a_finished_run_is_not_trained_again_and_another_recipe_is(tmp_path, capsys):
    train(tmp_path)
    before = (tmp_path / "checkpoint/weights.safetensors").read_bytes()
    capsys.readouterr()
    train(tmp_path)
    assert "resumed after epoch 3" in capsys.readouterr().err
    assert (tmp_path / "checkpoint/weights.safetensors").read_bytes() == before
    train(tmp_path, make_config(learning_rate=1e-3))
    assert "starting anew" in capsys.readouterr().err
    assert (tmp_path / "checkpoint/weights.safetensors").read_bytes() != before


def test_early_stopping_keeps_the_best_epoch(tmp_path, monkeypatch):
    aucs = iter([0.6, 0.8, 0.7, 0.75, 0.9])

    class Planted:
        def __init__(self, *_):
            pass

        def auc(self):
            return [next(aucs)]

    monkeypatch.setattr(training, "Ranking", Planted)
    metrics = train(tmp_path, make_config(epochs=5, patience=2))
    assert list(metrics["val_auc"]) == [0.6, 0.8, 0.7, 0.75]
    assert read_json(tmp_path / "checkpoint/model.json")["best_epoch"] == 2


def test_batches_repeat_positives_and_are_nearly_equal():
    label = np.array([1] * 10 + [0] * 90)
    settings = make_config(batch_size=32, positive_repeats=2).training
    batches = draw_batches(label, settings, 1, 0)
    rows = np.concatenate([part for part, _ in batches])
    assert sorted(np.bincount(rows)) == [1] * 90 + [2] * 10
    assert {len(part) for part, _ in batches} <= {27, 28}
    assert not np.array_equal(rows, np.concatenate([p for p, _ in draw_batches(label, settings, 1, 1)]))


def test_turns_are_the_eight_symmetries():
    image = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 4, 4, 2).repeat(8, 1, 1, 1)
    out = turn_images(image, np.arange(8))
    assert out.shape == (8, 2, 4, 4)
    assert torch.equal(out[0], image[0].permute(2, 0, 1))
    assert len({tuple(row.flatten().tolist()) for row in out}) == 8
    assert torch.equal(out.flatten(1).sort(1).values, image.permute(0, 3, 1, 2).flatten(1).sort(1).values)


def test_loss_is_the_mean_over_weights():
    logit, label = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    weight = torch.tensor([1.0, 0.5, 0.0])
    p = 1 / (1 + np.exp([-0.3, 1.2]))
    expected = (-np.log(p[0]) * 1.0 - np.log(1 - p[1]) * 0.5) / 1.5
    assert compute_loss(logit, label, weight).item() == pytest.approx(expected, rel=1e-6)
    focal = 0.25 * (1 - p[0]) ** 2 * -np.log(p[0]) * 1.0 + 0.75 * p[1] ** 2 * -np.log(1 - p[1]) * 0.5
    assert compute_loss(logit, label, weight, "focal").item() == pytest.approx(focal / 1.5, rel=1e-5)
    with pytest.raises(UserError, match="known are bce, focal"):
        compute_loss(logit, label, weight, "hinge")


def test_bad_manifests_and_devices_are_refused(tmp_path):
    table, store = make_data(40)
    with pytest.raises(UserError, match="sample_weight missing"):
        train(tmp_path, data=(table.drop(columns="sample_weight"), store))
    with pytest.raises(UserError, match="'val' needs accepted rows of both labels"):
        train(tmp_path, data=(table.assign(split="train"), store))
    with pytest.raises(UserError, match="known are resnet18"):
        train(tmp_path, make_config(architecture="vgg"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            choose_device("cuda")


def test_malformed_state_gives_one_clear_error(tmp_path):
    state = tmp_path / "state" / "training.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"not tensors")
    with pytest.raises(UserError, match="delete it to start anew"):
        train(tmp_path)
