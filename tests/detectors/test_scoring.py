"""Scores are a function of the stamp alone; checkpoints are tensors and JSON, checked before use."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from lensaudit.artifacts import UserError
from lensaudit.detectors.architectures import make_network
from lensaudit.detectors.scoring import Detector, hash_tensors, load_detector, score_table
from lensaudit.pixels.preprocessing import make_preprocessing


@pytest.fixture(scope="module")
def detector():
    return Detector(make_network("resnet18", 3), make_preprocessing(), torch.device("cpu"), "test")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 0.1, (40, 3, 101, 101)).astype(np.float32)


def test_resnet18_is_the_standard_one():
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = make_network("resnet18", 1).eval(), torchvision.models.resnet18(weights=None).eval()
    state = {name.removeprefix("body."): v for name, v in ours.state_dict().items() if name.startswith("body.")}
    assert sorted(theirs.load_state_dict(state, strict=False).missing_keys) == ["fc.bias", "fc.weight"]
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(ours.body(x), theirs(x), atol=1e-5)
    with pytest.raises(UserError, match="known are resnet18, efficientnet_b0"):
        make_network("vit")


def test_same_seed_same_weights():
    one, two, other = (hash_tensors(make_network("resnet18", seed).state_dict()) for seed in (1, 1, 2))
    assert one == two != other


def test_score_is_the_same_bits_in_any_batch_order_and_box(detector, images):
    whole = detector.score(images)
    assert whole.dtype == np.float32 and whole.std() > 0
    order = np.random.default_rng(1).permutation(len(images))
    assert np.array_equal(detector.score(images[order]), whole[order])
    assert np.array_equal(detector.score(images[7:8]), whole[7:8])
    mixed = np.concatenate([images[3:4] * 50, images[7:9]])
    assert np.array_equal(detector.score(mixed)[1:], whole[7:9])
    assert np.array_equal(detector.score(images[:, :, 18:83, 18:83]), whole)


def test_penultimate_carries_the_logit(detector, images):
    features = detector.penultimate(images[:5])
    weight = detector.network.head.weight.detach().numpy()[0]
    logit = features.astype(float) @ weight + detector.network.head.bias.item()
    assert features.shape == (5, 512)
    assert logit == pytest.approx(detector.score(images[:5]), abs=1e-6)


def test_layers_are_those_of_the_network_and_leave_no_hook(detector, images):
    layers = detector.layers(images)
    assert {name: rows.shape for name, rows in layers.items()} == {
        "layer1": (40, 64), "layer2": (40, 128), "layer3": (40, 256), "penultimate": (40, 512)}  # fmt: skip
    assert np.array_equal(layers["penultimate"], detector.penultimate(images))
    assert np.array_equal(detector.layers(images[7:9])["layer2"], layers["layer2"][7:9])
    body, x = detector.network.body, detector.preprocessing.apply(torch.as_tensor(images[:2]))
    with torch.no_grad():
        stem = torch.relu(body.bn1(body.conv1(x)))
        own = body.layer1(torch.nn.functional.max_pool2d(stem, 3, 2, 1)).mean((2, 3)).numpy()
    assert layers["layer1"][:2] == pytest.approx(own, rel=0.05, abs=0.02)
    assert not any(module._forward_hooks for module in detector.network.modules())
    assert detector.layers(images[:0])["penultimate"].shape == (0, 512)


def test_refusals_name_the_object(detector, images):
    broken = images[:3].copy()
    broken[1, 0, 50, 50] = np.nan
    with pytest.raises(UserError, match="object 10000-1-2"):
        detector.score(broken, ["10000-1-1", "10000-1-2", "10000-1-3"])


def write_folder(folder, detector):
    from safetensors.torch import save_file

    folder.mkdir()
    state = detector.network.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
    spec = detector.preprocessing
    for name, value in {
        "config": {"architecture": "resnet18", "bfloat16": True}, "preprocessing": spec.to_dict(),
        "model": {
            "model_id": "resnet18-m-w", "weights_sha256": hash_tensors(state), "preprocessing_sha256": spec.checksum()
        },
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_checkpoints_are_verified_and_never_unpickled(tmp_path, detector, images, monkeypatch):
    write_folder(tmp_path / "c", detector)

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("torch.load", refuse)
    loaded = load_detector(tmp_path / "c", "cpu")
    assert loaded.id == "resnet18-m-w"
    assert np.array_equal(loaded.score(images[:4]), detector.score(images[:4]))
    spec = json.loads((tmp_path / "c/preprocessing.json").read_text())
    (tmp_path / "c/preprocessing.json").write_text(json.dumps(spec | {"clip": 20.0}))
    with pytest.raises(UserError, match="not the preprocessing this model was trained with"):
        load_detector(tmp_path / "c", "cpu")
    (tmp_path / "c/preprocessing.json").write_text(json.dumps(spec))
    data = bytearray((tmp_path / "c/weights.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "c/weights.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="not the weights"):
        load_detector(tmp_path / "c", "cpu")
    (tmp_path / "c/weights.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_detector(tmp_path / "c", "cpu")
    with pytest.raises(UserError, match="no such file"):
        load_detector(tmp_path / "absent", "cpu")


def test_score_table_keeps_keys(images):
    class Store:
        def read_box(self, paths, size):
            return images[[int(path.partition("#")[2]) for path in paths]][:, :, :size, :size]

    class Peak:
        box = 101

        def score(self, stamps, ids):
            return stamps[:, 1, 50, 50]

    rows = pd.DataFrame({"galaxy_id": ["c", "a", "b"], "cutout_path": ["s#2", "s#0", "s#1"]}, index=[5, 6, 7])
    table = score_table(Peak(), Store(), rows, block=2)
    assert list(table["galaxy_id"]) == ["c", "a", "b"]
    assert np.array_equal(table["logit"], images[[2, 0, 1], 1, 50, 50])
    with pytest.raises(UserError, match="more than one row"):
        score_table(Peak(), Store(), pd.concat([rows, rows]))
