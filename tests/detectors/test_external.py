"""Foreign detectors: callables, exported programs, score tables; nothing pickled is ever executed."""

import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from lensaudit.artifacts import UserError
from lensaudit.detectors.external import ExternalDetector, join_scores, load_exported, load_onnx, read_scores


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return (x.mean((2, 3)) * self.weight).sum(1)


class Evil:
    """Leaves a file when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.fixture
def images():
    return np.random.default_rng(2).normal(size=(10, 3, 101, 101)).astype(np.float32)


def test_callable_gets_the_central_box_and_gives_logits(images):
    detector = ExternalDetector(lambda rows: rows[:, 1, 32, 32], "centre", box=65, batch=3)
    assert np.array_equal(detector.score(images), images[:, 1, 50, 50])
    half = ExternalDetector(lambda rows: np.full(len(rows), 0.5), "half", output="score")
    assert np.array_equal(half.score(images), np.zeros(10))


def test_bad_answers_are_errors(images):
    with pytest.raises(UserError, match="gave 1 scores for 10 stamps"):
        ExternalDetector(lambda rows: [0.0], "short").score(images)
    with pytest.raises(UserError, match="object b3"):
        ExternalDetector(lambda rows: [0, 0, 0, np.nan] + [0] * 6, "nan").score(images, [f"b{i}" for i in range(10)])
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        ExternalDetector(lambda rows: np.full(len(rows), 3.0), "wide", output="score").score(images)
    with pytest.raises(UserError, match="takes 101 pixels; the stamps have 65"):
        ExternalDetector(lambda rows: rows, "wide").score(images[:, :, 18:83, 18:83])


def test_exported_program_round_trip(tmp_path, images):
    path = tmp_path / "mean.pt2"
    shapes = ({0: torch.export.Dim("n", min=1, max=512)},)
    torch.export.save(torch.export.export(Mean(), (torch.zeros(2, 3, 65, 65),), dynamic_shapes=shapes), path)
    detector = load_exported(path, box=65, device="cpu")
    expected = (images[:, :, 18:83, 18:83].mean((2, 3)) * [1, 2, 3]).sum(1)
    assert detector.score(images) == pytest.approx(expected, abs=1e-5)
    assert detector.id.startswith("mean-")


def test_pickles_in_an_exported_program_are_refused_unopened(tmp_path):
    path, mark = tmp_path / "mean.pt2", tmp_path / "executed"
    torch.export.save(torch.export.export(Mean(), (torch.zeros(2, 3, 65, 65),)), path)
    torch.save(Evil(str(mark)), tmp_path / "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()

    def plant(changes):
        planted = tmp_path / "planted.pt2"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(planted, "w") as target:
            for name in source.namelist():
                new = [value for end, value in changes.items() if name.endswith(end)]
                target.writestr(name, new[0](source.read(name)) if new else source.read(name))
        return planted

    def as_pickle(data):
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    with pytest.raises(UserError, match="sample_inputs/model.pt is not plain tensors"):
        load_exported(plant({"sample_inputs/model.pt": lambda _: evil}))
    with pytest.raises(UserError, match="stored as a pickle"):
        load_exported(plant({"weights_config.json": as_pickle, "weight_0": lambda _: evil}))
    assert not mark.exists()


def test_malformed_files_give_one_error(tmp_path):
    for name, load in (("a.pt2", load_exported), ("a.onnx", load_onnx)):
        path = tmp_path / name
        with pytest.raises(UserError):
            load(path)
        path.write_bytes(b"nothing")
        with pytest.raises(UserError):
            load(path)


def test_score_tables_are_joined_by_key(tmp_path):
    rows = pd.DataFrame({"galaxy_id": ["a", "b", "c"]})
    scores = pd.DataFrame({"galaxy_id": ["c", "a", "b"], "score": [0.9, 0.5, 0.1]})
    scores.to_csv(tmp_path / "s.csv", index=False)
    scores.to_parquet(tmp_path / "s.parquet")
    for name in ("s.csv", "s.parquet"):
        joined = join_scores(rows, read_scores(tmp_path / name))
        assert list(joined["score"]) == pytest.approx([0.5, 0.1, 0.9])
        assert joined["logit"][0] == pytest.approx(0.0)
    with pytest.raises(UserError, match="1 galaxy_id without a score, such as d"):
        join_scores(pd.DataFrame({"galaxy_id": ["a", "b", "c", "d"]}), read_scores(tmp_path / "s.csv"))
    with pytest.raises(UserError, match="scored but not asked for, such as c"):
        join_scores(rows.iloc[:2], read_scores(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("galaxy_id,score\na,0.1\na,0.2\n", "a stands on more than one row"),
        ("galaxy_id,value\na,0.1\n", "needs columns galaxy_id and logit or score"),
        ("galaxy_id,score\na,many\n", "score of galaxy_id a is not a finite number"),
        ("", "not a readable CSV"),
    ],
)
def test_malformed_score_tables(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_scores(path)
