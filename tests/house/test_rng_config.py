"""Streams by id and configuration files."""

import numpy as np
import pytest
from scipy import stats as sps

from lensaudit import rng
from lensaudit.artifacts import UserError
from lensaudit.config import load_config


def test_draws_do_not_depend_on_company():
    full = rng.draw_uniforms(7, "x", range(100), 5)
    part = rng.draw_uniforms(7, "x", [42, 3], 5)
    np.testing.assert_array_equal(part, full[[42, 3]])
    stream = rng.make_stream(7, "x", 42).random(5)
    np.testing.assert_array_equal(stream, full[42])


def test_streams_differ_by_seed_name_and_id():
    draws = {rng.make_stream(s, n, i).random() for s in (1, 2) for n in ("a", "b") for i in (0, 1, "0", "1")}
    assert len(draws) == 16


def test_uniform_across_ids():
    u = rng.draw_uniforms(3, "uniform", range(5000), 1)[:, 0]
    assert sps.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.05


def test_hash_order_ignores_row_order():
    ids = [f"g{i}" for i in range(500)]
    forward = dict(zip(ids, rng.hash_order(1, "s", ids), strict=True))
    backward = dict(zip(ids[::-1], rng.hash_order(1, "s", ids[::-1]), strict=True))
    assert forward == backward
    assert sps.kstest(list(forward.values()), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("text, word", [
    ("[sampling]\nn_trian = 3\n", "n_trian"),
    ("[samplng]\nn_train = 3\n", "samplng"),
    ("[sampling]\nn_train = 'many'\n", "n_train"),
    ("sampling = 3\n", "section"),
    ("[sampling\n", "not valid TOML"),
])
def test_bad_profile_is_one_clear_error(tmp_path, text, word):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value) and "mine.toml" in str(caught.value)


def test_profiles_load_and_differ():
    assert load_config("demo").sampling.n_test == 13000
    assert load_config("smoke").seed == load_config("demo").seed
    with pytest.raises(UserError, match="known are"):
        load_config("nope")
