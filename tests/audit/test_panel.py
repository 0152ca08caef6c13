"""The blinded panel: who may enter, that it is matched and blind, and that only people's grades move its outcome."""

import dataclasses
import io
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from scipy import stats

from lensaudit.artifacts import UserError
from lensaudit.audit import panel
from lensaudit.config import load_config
from lensaudit.figures import panel as figures

CONFIG = load_config("smoke")
CONFIG = dataclasses.replace(CONFIG, realism=dataclasses.replace(CONFIG.realism, n_bootstrap=60))


def make_table(n, seed):
    generator = np.random.default_rng(seed)
    return pd.DataFrame({
        "arc_radius": generator.normal(1.3, 0.3, n), "psfsize_r": generator.uniform(0.9, 1.8, n),
        "depth_r": generator.uniform(22.5, 25.5, n), "mag_host": generator.normal(19, 0.7, n),
        "galaxy_id": [f"g{i}" for i in range(n)], "cutout_path": [f"s#{i}" for i in range(n)], "split": "train",
        "injection_id": np.arange(n) + 1000, "host_index": np.arange(n) // 3,
    })  # fmt: skip


@pytest.fixture(scope="module")
def chosen():
    return panel.make_panel(make_table(90, 0), make_table(6000, 1), CONFIG.seed)


@pytest.fixture(scope="module")
def key(chosen):
    return panel.describe_key(chosen)


def test_the_panel_is_matched_blind_and_without_a_host_twice(chosen, key):
    assert list(chosen["number"]) == list(range(1, 51)) and chosen["answer"].value_counts().to_dict() == {
        "lens": 25, "injection": 25}  # fmt: skip
    injected = chosen.loc[chosen["answer"] == "injection", "injection_id"]
    hosts = (injected - 1000) // 3
    assert hosts.is_unique and set(chosen.loc[chosen["answer"] == "lens", "injection_id"]) == {-1}
    assert max(abs(v) for v in key["match"].values()) < 0.1
    pairs = chosen.set_index(["pair", "answer"])[list(panel.TARGET_COLUMNS)].unstack("answer")
    gap = pairs.xs("lens", axis=1, level=1) - pairs.xs("injection", axis=1, level=1)
    assert (gap.abs().mean() < 0.4 * chosen[list(panel.TARGET_COLUMNS)].std()).all()
    # Neither the order of the sheet nor that of the tables says which is which.
    runs = np.sum(np.diff((chosen["answer"] == "lens").astype(int)) != 0)
    assert 15 <= runs <= 35
    again = panel.make_panel(make_table(90, 0).sample(frac=1, random_state=1), make_table(6000, 1), CONFIG.seed)
    assert panel.describe_key(again)["panel"] == key["panel"]
    assert panel.describe_key(panel.make_panel(make_table(90, 0), make_table(6000, 1), 5))["panel"] != key["panel"]


def test_a_test_lens_is_refused_and_few_make_a_smaller_panel(tmp_path):
    lenses, injections = make_table(30, 0), make_table(60, 1)
    with pytest.raises(UserError, match="g3 is a test lens"):
        panel.make_panel(lenses.assign(split=["val"] * 3 + ["test"] + ["val"] * 26), injections, 1)
    none = panel.make_panel(lenses, injections.head(0), 1)
    assert none.empty and panel.describe_key(none)["n"] == 0
    assert panel.render_panel(none, injections, None, None, None, CONFIG).shape == (0, 3, 65, 65)
    panel.write_pictures(tmp_path / "p.npy", np.full((2, 5, 5, 3), 0.2))
    assert np.allclose(panel.read_pictures(tmp_path / "p.npy"), 0.2)
    few = panel.make_panel(lenses.head(4), injections, 1)
    assert len(few) == 8 and panel.describe_key(few)["n"] == 8


def grade(folder, key, grader, chance, seed, bonus=0.0, numbers=None):
    """Let a grader give right answers with a chance, and injections a bonus in cleanliness."""
    generator = np.random.default_rng(seed)
    for number in numbers or range(1, key["n"] + 1):
        truth = key["answers"][str(number)]
        right = generator.random() < chance
        answer = truth if right else next(a for a in panel.ANSWERS if a != truth)
        clean = np.clip(round(generator.normal(3, 1) + bonus * (truth == "injection")), 1, 5)
        panel.save_grade(folder, key["panel"], grader, number, answer, clean)


def test_without_a_complete_sheet_it_is_not_graded(tmp_path, key):
    empty = panel.score_panel(panel.read_grades(tmp_path, key), key, CONFIG)
    assert empty["outcome"] == "not graded" and list(panel.panel_rows(empty, CONFIG)["outcome"]) == ["not graded"]
    grade(tmp_path, key, "ann", 0.5, 0, numbers=[1, 2, 3])
    scored = panel.score_panel(panel.read_grades(tmp_path, key), key, CONFIG)
    assert scored["outcome"] == "not graded" and scored["unfinished"] == ["ann"]
    assert panel.save_grade(tmp_path, key["panel"], "ann", 2, "lens", 5) == 3
    assert panel.read_grades(tmp_path, key).set_index("number").loc[2, "cleanliness"] == 5


def test_graders_who_cannot_tell_are_go_and_clean_injections_are_no_go(tmp_path, key):
    for seed, name in enumerate(("ann", "bo", "cy")):
        grade(tmp_path / "blind", key, name, 0.5, seed)
        grade(tmp_path / "clean", key, name, 0.9, seed, bonus=1.5)
    scored = panel.score_panel(panel.read_grades(tmp_path / "blind", key), key, CONFIG)
    assert scored["outcome"] == "GO" and scored["accuracy"]["lower"] < 0.5 < scored["accuracy"]["upper"]
    assert abs(scored["fleiss"]["value"]) < 0.25 and len(scored["kappa"]) == 3
    assert sum(sum(row.values()) for row in scored["confusion"].values()) == 150
    seen = panel.score_panel(panel.read_grades(tmp_path / "clean", key), key, CONFIG)
    assert seen["outcome"] == "NO-GO" and seen["cleaner"]["lower"] > 0.5 and seen["accuracy"]["value"] > 0.8
    assert all(row["p"] < 0.01 and row["lower"] > 0.5 for row in seen["graders"])
    assert seen["confusion"]["lens"]["lens"] > 55
    rows = panel.panel_rows(seen, CONFIG)
    assert rows["outcome"].tolist() == ["NO-GO", "reported", "reported"]
    # Lenses that look cleaner are no fault of the injections.
    grade(tmp_path / "lenses", key, "ann", 0.9, 4, bonus=-1.5)
    other = panel.score_panel(panel.read_grades(tmp_path / "lenses", key), key, CONFIG)
    assert other["outcome"] == "GO" and other["kappa"] == [] and other["fleiss"] is None
    assert panel.panel_rows(other, CONFIG)["outcome"].tolist() == ["GO", "reported"]


def test_scores_against_closed_forms(tmp_path, key):
    """Cleanliness by Mann-Whitney's U of scipy, the binomial p, and a textbook's table with a Fleiss kappa of 0.210."""
    grade(tmp_path, key, "ann", 0.7, 3, bonus=0.5)
    grades = panel.read_grades(tmp_path, key)
    scored = panel.score_panel(grades, key, CONFIG)
    injected = grades["number"].astype(str).map(key["answers"]) == "injection"
    u = stats.mannwhitneyu(grades.loc[injected, "cleanliness"], grades.loc[~injected, "cleanliness"]).statistic
    assert scored["cleaner"]["value"] == pytest.approx(u / 625)
    k = round(50 * scored["graders"][0]["accuracy"])
    assert scored["graders"][0]["p"] == pytest.approx(min(1.0, 2 * stats.binom.sf(k - 1, 50, 0.5)))
    counts = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    assert panel.find_fleiss(counts) == pytest.approx(0.210, abs=5e-4)
    assert np.isnan(panel.find_fleiss(np.array([[3, 0], [3, 0]]))) and np.isnan(panel.find_kappa([True], [True]))
    assert panel.find_kappa([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(0.5)


@pytest.mark.parametrize(("change", "message"), [
    ({"panel": "other"}, "panel 'other' is not one of this panel; grade this panel anew"),
    ({"number": 51}, "stamps are 1 to 50"), ({"answer": "maybe"}, "lens or injection"), ({"cleanliness": 9}, "1 to 5"),
    ({"grader": "bo"}, "one file per grader"),
])  # fmt: skip
def test_wrong_grades_are_named(tmp_path, key, change, message):
    row = {"panel": key["panel"], "grader": "ann", "number": 1, "answer": "lens", "cleanliness": 3} | change
    pd.DataFrame([row]).to_csv(tmp_path / "ann.csv", index=False)
    with pytest.raises(UserError, match=f"ann.csv: .*{re.escape(message)}"):
        panel.read_grades(tmp_path, key)


def test_broken_files_and_names_are_named(tmp_path, key):
    row = {"panel": key["panel"], "grader": "ann", "number": 1, "answer": "lens", "cleanliness": 3}
    pd.DataFrame([row, row]).to_csv(tmp_path / "ann.csv", index=False)
    with pytest.raises(UserError, match="stamp 1 is graded twice"):
        panel.read_grades(tmp_path, key)
    (tmp_path / "ann.csv").write_text("grader,number\nann,1\n")
    with pytest.raises(UserError, match="column panel is missing"):
        panel.read_grades(tmp_path, key)
    (tmp_path / "ann.csv").write_text("")
    with pytest.raises(UserError, match="not a readable table"):
        panel.read_grades(tmp_path, key)
    with pytest.raises(UserError, match="letters, digits and hyphens"):
        panel.save_grade(tmp_path, key["panel"], "../ann", 1, "lens", 3)


def test_the_sheet_holds_numbers_and_no_hint(chosen, key):
    pictures = np.random.default_rng(0).random((25, 65, 65, 3))
    fig = figures.plot_panel(pictures, 26, key["panel"])
    texts = {text.get_text() for axis in fig.axes for text in (axis.title, *axis.texts)}
    assert {str(number) for number in range(26, 51)} <= texts and len(texts) == 26
    assert not any(name in text for text in texts for name in chosen["id"] if len(name) > 2)
    scored = {"outcome": "not graded", "graders": []}
    assert "not graded" in {t.get_text() for axis in figures.plot_answers(scored).axes for t in axis.texts}


def test_answers_are_drawn_from_the_counts():
    row = {"grader": "ann", "n": 50, "accuracy": 0.6, "lower": 0.46, "upper": 0.73, "p": 0.2}
    scored = {"graders": [row], "confusion": {"lens": {"lens": 17, "injection": 8}, "injection": {"lens": 12,
              "injection": 13}}}  # fmt: skip
    left, right = figures.plot_answers(scored).axes
    assert [text.get_text() for text in left.texts] == ["17", "8", "12", "13"]
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["ann"]


def test_the_widget_saves_a_grade_and_goes_on(tmp_path, key):
    widgets = pytest.importorskip("ipywidgets")
    pictures = np.random.default_rng(0).random((key["n"], 65, 65, 3))
    box = figures.make_grader(pictures, partial(panel.save_grade, tmp_path, key["panel"]))
    grader, title, picture, answer, clean, buttons, note = box.children
    back, done = buttons.children
    first = bytes(picture.value)
    assert isinstance(picture, widgets.Image) and first.startswith(b"\x89PNG") and title.value == "stamp 1 of 50"
    done.click()
    assert "give both" in note.value and title.value == "stamp 1 of 50"
    answer.value, clean.value = "injection", 4
    done.click()
    assert "letters, digits" in note.value and title.value == "stamp 1 of 50"
    grader.value = "ann"
    done.click()
    assert title.value == "stamp 2 of 50" and bytes(picture.value) != first and answer.value is None
    assert panel.read_grades(tmp_path, key).iloc[0].tolist() == [key["panel"], "ann", 1, "injection", 4]
    back.click()
    assert title.value == "stamp 1 of 50" and bytes(picture.value) == first


def test_the_picture_stands_as_in_the_sheet():
    picture = np.zeros((5, 5, 3))
    picture[4, 0, 0] = 1.0  # the upper left corner, when the first row is at the bottom
    read = image.imread(io.BytesIO(figures.encode_picture(picture)))
    assert read.shape[:2] == (30, 30) and read[0, 0, 0] == 1.0 and read[-1, 0, 0] == 0.0
