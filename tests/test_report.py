"""Numbers become macros, tables and a paper; nothing that no stage made gets through."""

import ast
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from lensaudit import graph, report, summary, wording
from lensaudit.artifacts import Stage, UserError
from lensaudit.audit import engine
from lensaudit.audit.completeness import CELL_COLUMNS
from lensaudit.catalogs.confusers import CATEGORIES
from lensaudit.config import load_config
from lensaudit.pixels.quality import FEATURES
from lensaudit.tables import join_interval

STAGES = ("01_crossmatch", "02_sampling", "03_cutouts", "04_training", "05_evaluation", "06_injection_realism",
          "07_completeness", "08_failure_modes")  # fmt: skip
POINTS = ("fpr_1e-2", "fpr_1e-3", "fpr_1e-4")


def make_row(verdict="closes"):
    return {"recall": 0.44, "recall_lower": 0.38, "recall_upper": 0.5, "predicted": 0.43, "predicted_lower": 0.37,
            "predicted_upper": 0.49, "n_lenses": 214, "n_unsupported": 2, "half_width": 0.06, "z": 0.3, "closes": True,
            "verdict": verdict, "n_eff": 41.5, "tertiles": {"bins": [], "max_abs_z": 1.2, "limit": 2.8}}  # fmt: skip


def make_closure(verdict="closes"):
    control = {"must_fail": True, "caught": True, "caught_by": ["twins"], "conditional": make_row("does not close"),
               "calibrated": make_row(), "twins": make_row("does not close")}  # fmt: skip
    extra = {"twins": make_row(), "calibrated": make_row(), "extended": make_row(), "oracle": make_row(),
             "grid": make_row("inconclusive"),
             "controls": {"random_hosts": control, "faint": control, "gain_150": control | {"must_fail": False},
                          "unspoiled": control | {"must_fail": False, "caught": False}},
             "detector": "0123abcd4567"}  # fmt: skip
    strict = make_row() | extra | {"fpr": 0.001}
    whole = make_row(verdict) | extra | {"fpr": 0.01, "fpr_1e-3": strict}
    return whole | {"companion": whole | {"controls": {}, "fpr_1e-3": strict | {"controls": {}}}}


def make_thresholds():
    known = {"threshold": 2.1, "lower": 2.0, "upper": 2.2, "n_negatives": 11000, "status": "headline",
             "achieved_test_fpr": 0.01, "achieved_test_fpr_lower": 0.008, "achieved_test_fpr_upper": 0.012}
    unknown = dict.fromkeys(known) | {"n_negatives": 11000, "status": "cannot be computed"}
    return {"fpr_1e-2": known, "fpr_1e-3": known, "fpr_1e-4": unknown,
            "score_0.5": {"threshold": 0.0, "lower": 0.0, "upper": 0.0, "status": "fixed"}}  # fmt: skip


def make_evaluation():
    subsets = ("all labelled lenses", "Tier A", "Tier B", "Tier S", "Tier A, visible")
    recall = [{"subset": s, "point": p, "n": 0 if s == "Tier S" else 210, "k": 90, "recall": 0.43, "lower_total": 0.36,
               "upper_total": 0.5} for s in subsets for p in POINTS[:2]]  # fmt: skip
    metric = {"value": 0.94, "lower": 0.93, "upper": 0.95}
    return {"thresholds": make_thresholds(), "counts": {"lenses": 360}, "recall": recall,
            "metrics": {m: metric for m in ("auc", "average_precision", "tpr0", "tpr10")}}  # fmt: skip


def write_stages(config, closure=None):
    """Write the smallest set of stage outputs that the summary reads, through the real `Stage`."""
    stages = {name: Stage(name, config) for name in STAGES}
    systems = pd.DataFrame({"entry_id": ["a", "b", "c"], "system_id": ["1", "1", "2"], "tier": ["A", "B", "S"]})
    stages["01_crossmatch"].write_table("systems.parquet", systems)
    matched = pd.DataFrame({"system_id": ["1", "2"], "tier": ["A", "S"], "separation": [0.05, 0.07]})
    stages["01_crossmatch"].write_table("positives.parquet", matched)
    stages["01_crossmatch"].write_table("unmatched.parquet", pd.DataFrame({"entry_id": ["x"], "reason": ["masked"]}))
    samples = pd.DataFrame({"label": [1, 1, 1, 0, 0, 0], "tier": ["A", "A", "B", "N1", "N1", "N2"],
                            "pool": ["", "", "", "N1", "N1", "N2"],
                            "split": ["train", "val", "test", "train", "val", "test"]})  # fmt: skip
    stages["02_sampling"].write_table("samples.parquet", samples)
    parity = pd.DataFrame({"cut": ["all", "nobs", "nobs_z"], "is_detail": [False, False, True],
                           "n_removed_alone": [0, 12000, 11000], "n_removed_in_order": [0, 10000, 9000],
                           "n_left": [262113, 252113, 252113]})  # fmt: skip
    stages["02_sampling"].write_table("parity.parquet", parity)
    shared = {"galaxy_id": 0, "system_id": 0, "healpix_128": 0}
    stages["02_sampling"].write_json("splits.json", {"is_disjoint": True, "overlapping_pairs": 0, "shared": shared})
    stamps = pd.DataFrame({"galaxy_id": ["g1", "g2"], "quality_ok": [True, False]})
    stages["03_cutouts"].write_table("stamps.parquet", stamps)
    metrics = stages["04_training"].output("checkpoint/metrics.csv")
    pd.DataFrame({"epoch": [1, 2], "val_auc": [0.9, 0.94]}).to_csv(metrics, index=False)
    stages["05_evaluation"].write_json("evaluation.json", make_evaluation())
    stages["05_evaluation"].write_json("thresholds.json", make_thresholds())
    gates = pd.DataFrame({"gate": ["null injection", "annulus against core"], "outcome": ["pass", "fail"]})
    stages["05_evaluation"].write_table("gates.parquet", gates)
    names = ["arc_snr median", "panel", "arc_snr median"]
    checks = pd.DataFrame({"sample": ["verdict", "panel", "targets"], "check": names,
                           "value": [1.1, np.nan, 1.0], "lower": [0.9, np.nan, 0.9], "upper": [1.3, np.nan, 1.1],
                           "threshold": ["0.5-2", "graders", "0.5-2"], "outcome": ["GO", "not graded", "GO"]})
    stages["06_injection_realism"].write_table("realism.parquet", checks)
    stages["06_injection_realism"].write_json("realism.json", {"outcome": "GO"})
    write_engine(stages["06_injection_realism"], config)
    hosts = pd.DataFrame({"in_deployment": [True, True], "in_deflector": [True, False]})
    stages["06_injection_realism"].write_table("hosts.parquet", hosts)
    closure_set = pd.DataFrame({"injection_id": np.arange(5)})
    stages["06_injection_realism"].write_table("closure_injections.parquet", closure_set)
    write_audit(stages, closure or make_closure())
    for stage in stages.values():
        stage.close()


def write_engine(stage, config):
    convergence = pd.DataFrame({"method": ["engine", "fixed grid"], "source_R": 0.05, "n": 24, "median": [7e-5, 3e-3],
                                "setting": [config.injection.panel_width, 8.0], "maximum": [4e-4, 7e-2]})  # fmt: skip
    stage.write_json("engine.json", engine.summarise_engine(convergence, config))


def write_audit(stages, closure):
    stage = stages["07_completeness"]
    for name in ("grid_injections", "deployment_injections", "twins", "controls"):
        stage.write_table(f"{name}.parquet", pd.DataFrame({"injection_id": np.arange(5)}))
    cells = pd.DataFrame(0.0, index=range(4), columns=list(CELL_COLUMNS))
    cells = cells.assign(threshold_name="fpr_1e-2", seeing=[0.9, 0.9, 1.05, 1.05], completeness=[0.1, 0.3, 0.2, np.nan],
                         footprint_weight=[1.0, 1.0, 2.0, 0.0], sufficient=[True, True, True, False])  # fmt: skip
    stage.write_table("cells.parquet", cells)
    marginals = pd.DataFrame({"threshold_name": "fpr_1e-2", "weighting": ["footprint", "footprint", "flat"],
                              "theta_E": [1.0, 1.25, 1.0], "completeness": [0.2, 0.3, 0.1], "lower": 0.1,
                              "upper": 0.4})  # fmt: skip
    stage.write_table("marginals.parquet", marginals)
    numbers = {f"{n}{b}": 0.5 for n in ("p_d", "p_m_d", "p_m_nd", "recall") for b in ("", "_lower", "_upper")}
    gates = [{"population": p, "axis": "all", "n": 210, "missed_invisible": 0.6, "missed_visible": 0.4} | numbers
             for p in ("lenses", "injections")]  # fmt: skip
    stage.write_table("two_gates.parquet", pd.DataFrame(gates))
    stage.write_json("closure.json", closure)
    write_models(stage)
    rates = pd.DataFrame({"point": "fpr_1e-2", "axis": ["all", "confuser proxy"], "stratum": ["all", "ring_proxy"],
                          "n": [11000, 400], "k": [110, 9], "per_1e4": [100.0, 225.0], "lower": [80.0, 100.0],
                          "upper": [120.0, 400.0]})  # fmt: skip
    stages["08_failure_modes"].write_table("false_positives.parquet", rates)
    purity = pd.DataFrame({"point": "fpr_1e-2", "prevalence": [1e-4], "purity": [0.005], "lower": [0.004],
                           "upper": [0.006], "status": ["reported"]})  # fmt: skip
    stages["08_failure_modes"].write_table("prevalence.parquet", purity)


def write_models(stage):
    point = {"threshold_name": "fpr_1e-2"}
    stage.write_table("smooth_scores.parquet", pd.DataFrame({
        "model": ["smooth", "cells", "constant"], "gain": [0.0, 0.01, 0.02], "gain_lower": 0.0, "gain_upper": 0.03,
        **point,
    }))  # fmt: skip
    stage.write_table("smooth_checks.parquet", pd.DataFrame({
        "check": ["cells outside"], "observed": 14.0, "expected": 13.3, "n_cells": 539, **point,
    }))  # fmt: skip
    stage.write_table("seeds.parquet", pd.DataFrame({
        "sufficient": [True, True], "dof": 1, "completeness_audited": [0.2, 0.3], "completeness_companion": [0.3, 0.3],
        "sigma_seed": [0.07, 0.0], "sigma_counting": 0.02, **point,
    }))  # fmt: skip
    stage.write_table("grid_comparison.parquet", pd.DataFrame({
        "grid": ["default", "385 cells"], "weighting": "flat", "completeness": [0.09, 0.07], "lower_total": 0.05,
        "upper_total": 0.1, "sigma_threshold": 0.005, **point,
    }))  # fmt: skip
    steps = ["measured", "true S/N", "source colours", "source and arc", "lens and host", "twins", "lenses"]
    told = pd.DataFrame({"step": steps, "predicted": 0.3, "lower": 0.2, "upper": 0.4})
    stage.write_table("closure_gap.parquet", told)
    population = pd.DataFrame({"point": "fpr_1e-2", "comparison": ["rate", "C", "C x rate"], "expected": 8.0,
                               "observed": 12, "predicted_lower": 3.0, "predicted_upper": 14.0, "factor_up": 2.0})
    stage.write_table("population_closure.parquet", population)
    rungs = [{"weighting": w, "threshold_name": t, "kind": kind, "rung": rung, "label": rung, "completeness": 0.1,
              "lower": 0.05, "upper": 0.2, "first_in": value, "last_out": value, "status": "run"}
             for w in ("flat", "lenses") for t in ("score_0.3", "fpr_1e-2")
             for kind, rung, value in (("end", "published_2026", np.nan), ("end", "collett", np.nan),
                                       ("observed", "recall", np.nan), ("path", "hosts", 0.18),
                                       ("retrained", "clip_20", 0.05), ("retrained", "seeds", 0.0))]  # fmt: skip
    bounds = dict.fromkeys(("first_in_lower", "first_in_upper", "last_out_lower", "last_out_upper"), 0.2)
    stage.write_table("ladder.parquet", pd.DataFrame(rungs).assign(**bounds, n=3))


@pytest.fixture
def stage(scratch_root):
    config = load_config("smoke")
    write_stages(config)
    return Stage("09_summary", config, inputs=STAGES)


def write_summary(stage):
    numbers = summary.collect_summary(stage)
    report.write_paper(stage, numbers, summary.collect_tables(stage, numbers), summary.FORMATS)
    return numbers


def test_every_macro_of_the_paper_is_made(stage, root):
    macros = report.make_macros(summary.collect_summary(stage), summary.FORMATS)
    made = set(re.findall(r"\\newcommand\{(\\[A-Za-z]+)\}", macros))
    used = report.find_macros((root / "paper" / "paper.tex").read_text(encoding="utf-8"))
    assert used and used <= made, f"paper.tex uses {sorted(used - made)}"
    assert all(re.fullmatch(r"\\[A-Za-z]+", name) for name in made)


def test_every_table_of_the_paper_is_made(stage, root):
    text = (root / "paper" / "paper.tex").read_text(encoding="utf-8")
    tables = summary.collect_tables(stage, summary.collect_summary(stage))
    assert set(re.findall(r"\\input\{generated/([a-z_]+)\}", text)) - {"macros"} == set(tables)
    labels = set(re.findall(r"\\label\{([^}]+)\}", text)) | {t["label"] for t in tables.values()}
    assert set(re.findall(r"\\ref\{([^}]+)\}", text)) <= labels
    for _, _, where in summary.OBJECTIONS:
        assert where in labels or (root / where).is_file(), f"objection answered in {where}, which does not exist"


def saved_figures(root):
    """Figure names that the notebooks of the paper save, with the notebook."""
    saved = []
    for path in sorted((root / "notebooks").glob("0[1-9]_*.ipynb")):
        for call in ast.walk(ast.parse(graph.read_code(path))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "save_figure":
                saved.append((ast.literal_eval(call.args[1]), path.stem))
    return saved


def test_every_figure_of_the_paper_is_saved_once(root):
    names = [name for name, _ in saved_figures(root)]
    assert sorted(names) == sorted(set(names)), "two chapters save a figure under the same name"
    used = report.find_figures((root / "paper" / "paper.tex").read_text(encoding="utf-8"))
    assert set(used) <= set(names), f"paper.tex includes {sorted(set(used) - set(names))}"


def test_readme_names_every_figure_and_its_function(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `figures\.(\w+)\.(\w+)` \|$", text, re.M)
    named = sorted((name, notebook) for name, notebook, _, _ in rows if notebook[:2] != "10")
    assert named == sorted(saved_figures(root))
    for _, notebook, module, function in rows:
        source = (root / "lensaudit" / "figures" / f"{module}.py").read_text(encoding="utf-8")
        assert f"def {function}(" in source
        assert f"{function}(" in graph.read_code(root / "notebooks" / f"{notebook}.ipynb")


def test_numbers_are_those_of_the_stages(stage):
    numbers = summary.collect_summary(stage)
    assert numbers["crossmatch"]["n_systems"] == 2 and numbers["crossmatch"]["tier_s"] == 1
    assert numbers["completeness"]["small"] == 0.2 and numbers["completeness"]["large"] is None
    assert numbers["training"] == {"epochs": 2, "best_epoch": 2, "best_auc": 0.94}
    counts = {"n_go": 1, "n_no_go": 0, "n_inconclusive": 0, "n_not_graded": 1, "n_checks": 2}
    counts |= dict.fromkeys(("unmatched", "unmatched_lower", "unmatched_upper"))
    counts |= {"targets_n_go": 1} | {f"targets_{name}": 0 for name in ("n_no_go", "n_inconclusive", "n_not_graded")}
    assert numbers["realism"] == counts | {"n_eff": None, "n_eff_test": None, "verdict": "GO"}
    assert numbers["ladder"]["clip_20_first_in"] == 0.05 and numbers["ladder"]["seeds_n"] == 3
    assert numbers["controls"]["n_controls"] == 3  # the correct injections beside them are none
    assert numbers["controls"]["n_must_fail_caught"] == 2 and numbers["closure"]["predicted"] == 0.43


def test_missing_key_is_one_clear_error(scratch_root):
    config, closure = load_config("smoke"), make_closure()
    del closure["n_unsupported"]
    write_stages(config, closure)
    with pytest.raises(UserError, match=r"closure.json.*n_unsupported"):
        summary.collect_summary(Stage("09_summary", config, inputs=STAGES))


@pytest.mark.parametrize("verdict, red", [("closes", False), ("does not close", True), ("too few", False)])
def test_failed_closure_is_red(verdict, red):
    text = report.make_macros({"closure": {"verdict": verdict}})
    line = next(line for line in text.splitlines() if r"\closureverdict" in line)
    assert verdict in line and ("red" in line) is red


@pytest.mark.parametrize("value, spec, expected", [
    (12000, ".3f", r"\ensuremath{12\,000}"), (214, ".3f", r"\ensuremath{214}"), (0.4396, ".3f", r"\ensuremath{0.440}"),
    (0.938, "pct", r"\ensuremath{93.8\,\%}"), (9.99e-5, "sci", r"\ensuremath{1.0\times 10^{-4}}"),
    (None, ".3f", r"\emph{cannot be computed}"), (float("nan"), ".3f", r"\emph{cannot be computed}"),
    (True, ".3f", "yes"), ("a_b & 5%", ".3f", r"a\_b \& 5\%"), (np.float64(0.5), ".1f", r"\ensuremath{0.5}"),
    ((2.5, 3.5), "g", r"\ensuremath{2.5}, \ensuremath{3.5}"), (-0.00012, "sci", r"\ensuremath{-1.2\times 10^{-4}}"),
])  # fmt: skip
def test_format_value(value, spec, expected):
    assert report.format_value(value, spec) == expected


def test_macro_names():
    assert report.name_macro("closure.n_lenses") == r"\valClosureNLenses"
    assert report.name_macro("evaluation.tpr10") == r"\valEvaluationTprOneZero"
    with pytest.raises(UserError, match="same macro"):
        report.make_macros({"closure": {"verdict": "closes", "a_b": 1, "a-b": 2}})


def test_table_escapes_and_refuses_missing_columns():
    table = pd.DataFrame({"name": ["a_b"], "n": [12000.0], "text": [r"$x$"]})
    text = report.make_table(table, {"name": "name", "n": "$n$", "text": ("t", "latex")}, "c", "tab:x")
    assert r"a\_b & \ensuremath{12\,000} & $x$ \\" in text
    with pytest.raises(UserError, match="absent"):
        report.make_table(table, {"absent": "h"}, "c", "tab:x")


def test_an_interval_of_no_width_is_left_out():
    rows = pd.DataFrame({"v": [0.5, 0.5, np.nan, -1.0], "a": [0.4, 0.5, 0.1, np.nan], "b": [0.6, 0.5, 0.2, np.nan]})
    assert join_interval(rows, "v", "a", "b", 1) == ["$0.5$ [$0.4$, $0.6$]", "$0.5$", "--", "$-1.0$"]


def test_controls_stand_in_a_table_of_their_own(stage):
    tables = summary.collect_tables(stage, summary.collect_summary(stage))
    assert len(tables["closure"]["table"]) == 20  # six kinds of row, four of the companion, at two operating points
    for name in ("controls", "controls_strict"):
        controls = tables[name]["table"].set_index("control")
        order = ("unspoiled", "random_hosts", "faint", "gain_150")  # the correct injections first
        assert list(controls.index) == [wording.CLOSURE_ROWS[key] for key in order]
        assert controls.loc["random hosts", "must"] == "yes" and controls.loc["random hosts", "caught"] == "twins"
        assert controls["must"].tolist() == ["", "yes", "yes", ""]


def test_reported_contaminants_leave_the_realism_table(scratch_root):
    config = load_config("smoke")
    write_stages(config)
    upstream = Stage("06_injection_realism", config)
    checks = [("test", "arc_snr quantile 0.5", 1.0, 0.9, 1.1, "0.5 to 2", "GO"),
              ("test", "C2ST penultimate, labels permuted", 0.5, np.nan, np.nan, "", "reported"),
              ("test", "contaminants, ring_proxy: FPR with a blue source (without: 0.0297, ratio 3.7)", 0.109, 0.072,
               0.157, "", "reported"),
              ("test", "contaminants, all: FPR with a blue source (without: 0.0000, ratio inf)", 0.0, 0.0, 0.1, "",
               "reported")]  # fmt: skip
    names = ["sample", "check", "value", "lower", "upper", "threshold", "outcome"]
    upstream.write_table("realism.parquet", pd.DataFrame(checks, columns=names))
    upstream.write_json("realism.json", {"outcome": "GO"})
    upstream.write_table("hosts.parquet", pd.DataFrame({"in_deployment": [True], "in_deflector": [True]}))
    upstream.write_table("closure_injections.parquet", pd.DataFrame({"injection_id": np.arange(5)}))
    write_engine(upstream, config)
    upstream.close()
    stage = Stage("09_summary", config, inputs=STAGES)
    tables = summary.collect_tables(stage, summary.collect_summary(stage))
    assert [len(tables[n]["table"]) for n in ("realism", "realism_reported", "contaminants")] == [1, 1, 2]
    rows = tables["contaminants"]["table"]
    assert list(rows["key"]) == ["ring proxy", "all confusers"] and list(rows["before"]) == [0.0297, 0.0]


NAMED = {
    "name_category": [*CATEGORIES, "N1", "N2", "DEV", "plain SER", "arc S/N 27.5", "unknown_kind"],
    "name_cut": ["nobs_g", "z_mag", "maskbit 1 BRIGHT", "maskbit 99 NEW_BIT"], "name_feature": [*FEATURES, "new_one_r"],
    "name_gate": ["quality: nan_frac", "core only probe", "bandset", "some_gate"],
    "name_check": ["arc_snr quantile 0.5", "KS rho10", "noise ratio g", "C2ST hand-made, labels permuted",
                   "regions agree, chi-squared p", "C2ST penultimate, permutation p",
                   "C2ST hand-made, smallest planted g-r shift seen", "Frechet distance, layer1, over that of halves"],
    "name_subset": ["Tier A, arc_snr >= 1"], "name_closure_row": ["main", "faint / twins", "new_control / conditional"],
}  # fmt: skip


@pytest.mark.parametrize("function, key", [(f, k) for f, keys in NAMED.items() for k in keys])
def test_names_for_readers_hold_no_identifier(function, key):
    plain = re.sub(r"\$[^$]*\$", "", getattr(wording, function)(key))
    assert not re.search(r"[_&%#\\|]|>=|<=|C2ST|rho10|nobs|maskbit", plain), plain


def test_every_feature_of_a_stamp_has_a_name():
    assert set(FEATURES) <= set(wording.FEATURES)


def test_paper_with_an_unmade_number_is_refused():
    latex = r"\input{generated/macros}\input{generated/known}\includegraphics[width=1cm]{plot} \valFoo \valBar"
    report.check_paper(latex, r"\newcommand{\valFoo}{1}\newcommand{\valBar}{2}", {"known"}, {"plot"})
    with pytest.raises(UserError, match="valBar.*table known.*figure plot"):
        report.check_paper(latex, r"\newcommand{\valFoo}{1}", set(), set())


def promote_small_paper(scratch_root, stage):
    from lensaudit.figures.schematic import plot_schematic

    numbers = write_summary(stage)
    counts = summary.list_counts(numbers)
    stage.save_figure(plot_schematic(counts), "schematic", data=counts)
    stage.close()
    (scratch_root / "paper").mkdir(exist_ok=True)
    (scratch_root / "paper" / "paper.tex").write_text(r"\valClosureRecall \includegraphics{schematic}")
    return report.promote("smoke")


def test_promote_copies_indexes_and_removes_stale(scratch_root, stage):
    (scratch_root / "figures").mkdir()
    (scratch_root / "figures" / "old.pdf").write_text("stale")
    index = promote_small_paper(scratch_root, stage)
    assert not (scratch_root / "figures" / "old.pdf").exists()
    assert index == json.loads((scratch_root / "figures" / "index.json").read_text())
    row = index["figures"]["schematic"]
    assert row["stage"] == "09_summary" and row["numbers"] == "schematic.csv" and row["inputs"]
    for name in ("schematic.pdf", "schematic.png", "schematic.csv"):
        assert (scratch_root / "figures" / name).is_file() and name in row["files"]
    generated = {p.name for p in (scratch_root / "paper" / "generated").glob("*.tex")}
    assert {"macros.tex", "closure.tex", "objections.tex"} <= generated
    assert str(scratch_root) not in (scratch_root / "figures" / "index.json").read_text()


def test_promote_refuses_a_changed_file(scratch_root, stage):
    promote_small_paper(scratch_root, stage)
    (stage.folder / "tables" / "closure.tex").write_text("by hand")
    with pytest.raises(UserError, match="tables/closure.tex"):
        report.promote("smoke")
    with pytest.raises(UserError, match="make summary PROFILE=demo"):
        report.promote("demo")


def test_same_results_give_the_same_bytes(scratch_root, stage):
    promote_small_paper(scratch_root, stage)
    first = {p.name: p.read_bytes() for p in (scratch_root / "figures").iterdir()}
    shutil.rmtree(scratch_root / "artifacts" / "smoke" / "09_summary")
    promote_small_paper(scratch_root, Stage("09_summary", load_config("smoke"), inputs=STAGES))
    assert first == {p.name: p.read_bytes() for p in (scratch_root / "figures").iterdir()}


def test_verify(scratch_root, stage, capsys):
    assert report.verify("smoke") == 0 and "nothing compared" in capsys.readouterr().err
    write_summary(stage)
    stage.close()
    folder = scratch_root / "tests" / "reference"
    folder.mkdir(parents=True)
    values = {"closure.recall": {"value": 0.45, "tolerance": 0.02}, "closure.verdict": {"value": "closes"},
              "closure.n_lenses": {"value": 214}}  # fmt: skip
    (folder / "smoke.json").write_text(json.dumps({"values": values}))
    assert report.verify("smoke") == 0
    values["closure.recall"]["tolerance"] = 0.005
    values["closure.absent"] = {"value": 1.0, "tolerance": 0.5}
    (folder / "smoke.json").write_text(json.dumps({"values": values}))
    with pytest.raises(UserError, match=r"closure.absent = null.*closure.recall = 0.44, stored 0.45 \+- 0.005"):
        report.verify("smoke")


def test_model_card_says_what_it_is_not(stage):
    card = report.make_model_card(summary.collect_summary(stage))
    assert "0123abcd4567" in card and "simulated sky" in card and "Not a purity without a prevalence" in card
