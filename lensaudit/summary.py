"""The numbers, tables and answers of the paper, collected from the stages; nothing is measured here that a stage has.

`collect_summary` returns one nested dict of plain values; notebook 09 writes it as JSON and `report.make_macros` turns
it into LaTeX. The tables of the paper are those of `tables.collect_tables`. A missing file, column or key is an error
that names it.
"""

import dataclasses

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.audit import members
from lensaudit.audit.engine import read_benchmark
from lensaudit.audit.ladder import read_retrained
from lensaudit.audit.skies import MAX_BIAS, MIN_TRAINED, read_skies
from lensaudit.audit.verdict import DIAGNOSES, UNSPOILED
from lensaudit.tables import HEADLINE, OBJECTIONS, SPLITS, STRICT, collect_tables, pick
from lensaudit.wording import name_gate

__all__ = ["FORMATS", "OBJECTIONS", "collect_summary", "collect_tables", "list_counts", "pick"]
INTERVAL = ("recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper")
OUTCOMES = {"GO": "n_go", "NO-GO": "n_no_go", "inconclusive": "n_inconclusive", "not graded": "n_not_graded"}
ARCHITECTURES = {"resnet18": "ResNet-18", "efficientnet_b0": "EfficientNet-B0"}
FORMATS = {
    "matched_fraction": "pct", "confuser_share": "pct", "refused_fraction": "pct", "fprs": "sci", "achieved": "sci",
    "prevalence": "sci", "ladder.": ".2f", "gap.": ".2f", "max_bias": ".2f", "population.": ".1f",
    **dict.fromkeys(("chi2", "chi2_lower", "chi2_upper"), ".1f"), "smooth.": ".4f",
    "purity": ".2f", "n_eff": ".1f", "n_eff_test": ".1f", "theta_small": ".2f",
    "theta_large": ".2f", "config.": "g", "gates_failed": "latex", "engine.": "sci", "stamps_per_s": ".0f",
    "ratio_imagemodel": ".0f", "ratio_best_use": ".1f", "peak_memory_mb": ".0f", "first_call_s": ".1f",
    "engine.convergence.source_R": "g", "engine_setting": "g", "grid_setting": "g",
    **dict.fromkeys((f"ladder.trainings_headline_published_{end}" for end in ("min", "max")), ".3f"),
}  # fmt: skip


def collect_summary(stage):
    """Collect the numbers of the paper.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
        With stages 01 to 08 declared as inputs.

    Returns
    -------
    dict of dict
        Leaves are numbers, flags, short texts, sequences or None.
    """
    closure = stage.read_json("07_completeness", "closure.json")
    config = {name: value for name, value in dataclasses.asdict(stage.config).items() if isinstance(value, dict)}
    run = {"profile": stage.config.profile, "seed": stage.config.seed, "simulated": stage.config.survey.simulated,
           "detector": pick(closure, "detector", "closure.json")}  # fmt: skip
    return {
        "run": run, "config": config, "crossmatch": _collect_crossmatch(stage), "sampling": _collect_sampling(stage),
        "cutouts": _collect_cutouts(stage), "training": _collect_training(stage),
        "evaluation": _collect_evaluation(stage), "realism": _collect_realism(stage),
        "engine": stage.read_json("06_injection_realism", "engine.json"), "injections": _collect_injections(stage),
        "completeness": _collect_completeness(stage),
        "gates": _collect_gates(stage), **_collect_closure(closure), **_collect_models(stage),
        "ladder": _collect_ladder(stage), "gap": _collect_gap(stage), "skies": _collect_skies(),
        "population": _collect_population(stage),
        "prior": _collect_prior(),
    }  # fmt: skip


def _collect_crossmatch(stage):
    systems = stage.read_table("01_crossmatch", "systems.parquet", ["entry_id", "system_id", "tier"])
    positives = stage.read_table("01_crossmatch", "positives.parquet", ["system_id", "tier", "separation"])
    unmatched = stage.read_table("01_crossmatch", "unmatched.parquet", ["entry_id", "reason"])
    n_systems = systems["system_id"].nunique()
    matched = positives["system_id"].nunique()
    return {
        "n_entries": len(systems), "n_systems": n_systems, "n_matched": matched, "n_unmatched": len(unmatched),
        "matched_fraction": matched / n_systems if n_systems else None,
        "median_separation": float(positives["separation"].median()),
        **{f"tier_{t.lower()}": int((positives["tier"] == t).sum()) for t in "ABS"},
    }  # fmt: skip


def _collect_sampling(stage):
    samples = stage.read_table("02_sampling", "samples.parquet", ["label", "pool", "split"])
    verified = stage.read_json("02_sampling", "splits.json")
    negative, lens = samples[samples["label"] == 0], samples[samples["label"] == 1]
    out = {"n_positives": len(lens), "n_negatives": len(negative),
           "confuser_share": float((negative["pool"] == "N2").mean()),
           "is_disjoint": pick(verified, "is_disjoint", "splits.json"),
           "overlapping_pairs": pick(verified, "overlapping_pairs", "splits.json")}  # fmt: skip
    for name, key in (("pixels", "healpix_128"), ("systems", "system_id"), ("galaxies", "galaxy_id")):
        out[f"shared_{name}"] = pick(verified, f"shared.{key}", "splits.json")
    for split in SPLITS:
        out[f"positives_{split}"] = int((lens["split"] == split).sum())
        out[f"negatives_{split}"] = int((negative["split"] == split).sum())
    return out


def _collect_cutouts(stage):
    stamps = stage.read_table("03_cutouts", "stamps.parquet", ["galaxy_id", "quality_ok"])
    refused = int((~stamps["quality_ok"].astype(bool)).sum())
    return {"n_stamps": len(stamps), "n_refused": refused, "refused_fraction": refused / max(len(stamps), 1)}


def _collect_training(stage):
    metrics = pd.read_csv(stage.input("04_training", "checkpoint/metrics.csv"))
    missing = {"epoch", "val_auc"} - set(metrics)
    if missing:
        raise UserError(f"checkpoint/metrics.csv of 04_training lacks {', '.join(sorted(missing))}; run it again")
    best = metrics.loc[metrics["val_auc"].idxmax()]
    return {"epochs": len(metrics), "best_epoch": int(best["epoch"]), "best_auc": float(best["val_auc"])}


def _collect_evaluation(stage):
    where = "evaluation.json of 05_evaluation"
    result = stage.read_json("05_evaluation", "evaluation.json")
    thresholds = pick(result, "thresholds", where)
    out = {"n_negatives": pick(thresholds, f"{HEADLINE}.n_negatives", where)}
    for point, name in ((HEADLINE, "headline"), (STRICT, "strict")):
        for bound in ("", "_lower", "_upper"):
            out[f"achieved_{name}{bound}"] = thresholds[point].get(f"achieved_test_fpr{bound}")
    for metric in ("auc", "average_precision", "tpr0", "tpr10"):
        row = pick(result, f"metrics.{metric}", where)
        out |= {metric: row["value"], f"{metric}_lower": row["lower"], f"{metric}_upper": row["upper"]}
    gates = stage.read_table("05_evaluation", "gates.parquet", ["gate", "outcome"])
    failed = [name_gate(gate) for gate in gates.loc[gates["outcome"] == "fail", "gate"]]
    out |= {"n_gates": len(gates), "n_gates_failed": len(failed), "gates_failed": "; ".join(failed) or "none"}
    recall = {(r["subset"], r["point"]): r for r in pick(result, "recall", where)}
    for tier in "AB":
        row = recall.get((f"Tier {tier}", HEADLINE), {})
        out |= {f"n_tier_{tier}": row.get("n"), f"recall_tier_{tier}": row.get("recall"),
                **{f"recall_tier_{tier}_{b}": row.get(f"{b}_total") for b in ("lower", "upper")}}
    return out


def _collect_realism(stage):
    names = ["sample", "check", "outcome", "value", "lower", "upper"]
    checks = stage.read_table("06_injection_realism", "realism.parquet", names)
    targets, checks = checks[checks["sample"] == "targets"], checks[checks["sample"] != "targets"]
    counts = {name: int((checks["outcome"] == outcome).sum()) for outcome, name in OUTCOMES.items()}
    counts |= {f"targets_{name}": int((targets["outcome"] == outcome).sum()) for outcome, name in OUTCOMES.items()}
    probe = checks[checks["check"] == "C2ST hand-made, colours not matched"]
    counts |= {f"unmatched{end}": probe[name].iloc[0] if len(probe) else None
               for name, end in (("value", ""), ("lower", "_lower"), ("upper", "_upper"))}  # fmt: skip
    result = stage.read_json("06_injection_realism", "realism.json")
    effective = {name: result.get(name) for name in ("n_eff", "n_eff_test")}
    return counts | effective | {"n_checks": len(checks), "verdict": pick(result, "outcome", "realism.json")}


def _collect_injections(stage):
    pilot, rest = "06_injection_realism", "07_completeness"
    tables = {"grid": (rest, "grid_injections"), "closure": (pilot, "closure_injections"), "twins": (rest, "twins"),
              "deployment": (rest, "deployment_injections"), "controls": (rest, "controls")}  # fmt: skip
    out = {f"n_{name}": len(stage.read_table(where, f"{file}.parquet", ["injection_id"]))
           for name, (where, file) in tables.items()}  # fmt: skip
    hosts = stage.read_table("06_injection_realism", "hosts.parquet", ["in_deployment", "in_deflector"])
    return out | {"n_hosts": len(hosts), "n_deflector_hosts": int(hosts["in_deflector"].sum())}


def _collect_completeness(stage):
    cells = stage.read_table("07_completeness", "cells.parquet")
    own = cells[cells["threshold_name"] == HEADLINE]
    good = own[own["sufficient"]]
    out = {"n_cells": len(own), "n_sufficient": len(good), "n_columns": len(own.groupby(["seeing", "depth"])),
           "n_sufficient_columns": len(good.groupby(["seeing", "depth"]))}  # fmt: skip
    table = stage.read_table("07_completeness", "marginals.parquet")
    chosen = table[(table["threshold_name"] == HEADLINE) & (table["weighting"] == "footprint")]
    for name, radius in (("small", 1.0), ("large", 2.0)):
        rows = chosen[np.isclose(chosen["theta_E"], radius)]
        row = rows.iloc[0] if len(rows) else {}
        out[f"theta_{name}"] = radius
        out |= {f"{name}{bound}": row.get(bound.strip("_") or "completeness") for bound in ("", "_lower", "_upper")}
    return out


def _collect_gates(stage):
    table = stage.read_table("07_completeness", "two_gates.parquet")
    out = {}
    names = {"lenses": "lenses", "injections": "injections", "lenses, gate at 10 %": "loose_lenses",
             "injections, gate at 10 %": "loose_injections"}  # fmt: skip
    for population, short in names.items():
        rows = table[(table["axis"] == "all") & (table["population"] == population)]
        row = rows.iloc[0] if len(rows) else {}
        out[short] = {name: row.get(name) for name in ("n", "p_d", "p_m_d", "p_m_nd", "recall", "missed_invisible",
                                                            "missed_visible")}  # fmt: skip
    return out


def _collect_closure(closure):
    """Sections closure, strict, twins, the other rows, the companion and controls from closure.json."""
    where = "closure.json of 07_completeness"
    out = {}
    for name, entry in (("closure", closure), ("strict", pick(closure, STRICT, where))):
        keys = (*INTERVAL, "n_lenses", "n_unsupported", "verdict", "closes", "half_width")
        out[name] = {key: pick(entry, key, where) for key in keys}
        out[name]["max_abs_z"] = pick(entry, "tertiles.max_abs_z", where)
        out[name]["limit"] = pick(entry, "tertiles.limit", where)
    for name in ("twins", *DIAGNOSES, "grid"):
        row = pick(closure, name, where)
        out[name] = {key: row.get(key) for key in (*INTERVAL, "n_lenses", "n_eff", "verdict", "closes")}
    other = pick(closure, "companion", where)
    for name, row in (("companion", other), ("companion_calibrated", other["calibrated"])):
        out[name] = {key: row.get(key) for key in (*INTERVAL, "n_lenses", "verdict", "closes")}
    # Correct injections of the same number are what controls are judged against, not a control.
    controls = {name: row for name, row in pick(closure, "controls", where).items() if name != UNSPOILED}
    must = {name: row for name, row in controls.items() if row["must_fail"]}
    out["controls"] = {
        "n_controls": len(controls), "n_caught": sum(r["caught"] for r in controls.values()), "n_must_fail": len(must),
        "n_must_fail_caught": sum(r["caught"] for r in must.values()),
        **{name: {"caught": row["caught"], "predicted": row["conditional"]["predicted"],
                  "twins_predicted": row["twins"]["predicted"],
                  "calibrated_predicted": row.get("calibrated", {}).get("predicted")}
           for name, row in controls.items()},
    }  # fmt: skip
    return out


def _collect_models(stage):
    """Sections smooth, seeds and grids: what stands beside the map of completeness, at the headline's point."""
    scores = stage.read_table("07_completeness", "smooth_scores.parquet")
    checks = stage.read_table("07_completeness", "smooth_checks.parquet")
    own = scores[scores["threshold_name"] == HEADLINE].set_index("model")
    outside = checks[(checks["threshold_name"] == HEADLINE) & (checks["check"] == "cells outside")].iloc[0]
    smooth = {"n_outside": int(outside["observed"]), "expected_outside": float(outside["expected"]),
              "n_cells": int(outside["n_cells"])}  # fmt: skip
    for model in ("cells", "constant"):
        smooth |= {f"{model}_{key}": float(own.loc[model, key]) for key in ("gain", "gain_lower", "gain_upper")}
    pooled = members.pool_seeds(stage.read_table("07_completeness", "seeds.parquet")).set_index("threshold_name")
    keys = ("sigma_seed", "sigma_excess", "sigma_average", "factor_lower", "factor_upper")
    grids, out = stage.read_table("07_completeness", "grid_comparison.parquet"), {}
    flat = grids[(grids["threshold_name"] == HEADLINE) & (grids["weighting"] == "flat")]
    for name, short in (("default", "default"), ("385 cells", "common")):
        row = flat[flat["grid"] == name].iloc[0]
        out |= {f"{short}_{key}".removesuffix("_completeness"): float(row[key])
                for key in ("completeness", "lower_total", "upper_total", "sigma_threshold")}  # fmt: skip
    return {"smooth": smooth, "seeds": {key: float(pooled.loc[HEADLINE, key]) for key in keys}, "grids": out}


def _collect_ladder(stage):
    """Completeness at the ladder's two ends by weighting and operating point, and its largest steps."""
    table = stage.read_table("07_completeness", "ladder.parquet")
    ends, out = table[table["kind"] == "end"], {}
    for point, short in (("score_0.3", "loose"), (HEADLINE, "headline")):
        for row in ends[ends["threshold_name"] == point].itertuples():
            name = f"{short}_{row.weighting}_{'published' if row.rung.startswith('published') else 'fiducial'}"
            out |= {name: row.completeness, f"{name}_lower": row.lower, f"{name}_upper": row.upper}
        seen = table[(table["kind"] == "observed") & (table["threshold_name"] == point)].iloc[0]
        out |= {f"{short}_recall": seen["completeness"]}
    steps = table[table["kind"].eq("path") & table["weighting"].eq("lenses") & table["threshold_name"].eq("score_0.3")]
    steps = steps[steps["rung"] != "cuts"]  # a selection and no ingredient
    for kind in ("first_in", "last_out"):
        known = steps.dropna(subset=[kind])
        if len(known):
            top = known.loc[known[kind].abs().idxmax()]
            out |= {f"{kind}_label": top["label"], kind: top[kind], f"{kind}_lower": top[f"{kind}_lower"],
                    f"{kind}_upper": top[f"{kind}_upper"]}  # fmt: skip
    again = table[table["kind"].eq("retrained") & table["status"].eq("run") & table["weighting"].eq("lenses")]
    again = again[again["threshold_name"] == "score_0.3"].set_index("rung")
    keys = [part + end for part in ("first_in", "last_out") for end in ("", "_lower", "_upper")]
    for rung in ("clip_20", "seeds"):
        row = again.loc[rung] if rung in again.index else {}
        out |= {f"{rung}_{key}": row.get(key) for key in keys}
        out[f"{rung}_n"] = int(row["n"]) if len(row) else None
    trained = read_retrained(stage.config.profile, "ladder_trainings")
    levels = pd.DataFrame(columns=["weighting", "rung", "threshold_name"]) if trained is None else trained
    for point, short in (("score_0.3", "loose"), (HEADLINE, "headline")):
        for rung in ("published_2026", "recall"):
            own = levels[levels["weighting"].eq("flat") & levels["rung"].eq(rung) & levels["threshold_name"].eq(point)]
            name = f"trainings_{short}_{rung.removesuffix('_2026')}"
            out |= {f"{name}_{end}": own["completeness"].agg(end) if len(own) else None for end in ("min", "max")}
            out["n_trainings"] = len(own) or None
    return out


def _collect_gap(stage):
    """Predicted recall of the twins as more truth is told, and what is found of twins and lenses."""
    table, out = stage.read_table("07_completeness", "closure_gap.parquet"), {}
    for row in table.itertuples():
        name = row.step.lower().replace(" ", "_").replace("/", "")
        out |= {name: row.predicted, f"{name}_lower": row.lower, f"{name}_upper": row.upper}
    return out


def _collect_population(stage):
    """Counts of the blank bricks' lenses against expectation at the headline's rate; empty on real data."""
    table = stage.read_table("07_completeness", "population_closure.parquet")
    names, out = {"rate": "rate", "C": "map", "C x rate": "product"}, {}
    rows = table[table["point"] == HEADLINE].set_index("comparison")
    for kind, short in names.items():
        row = rows.loc[kind] if kind in rows.index else {}
        out |= {short: row.get("expected"), f"{short}_observed": row.get("observed")}
        out |= {f"{short}_{k}": row.get(k) for k in ("predicted_lower", "predicted_upper", "factor_up", "agrees")}
    return out


def _collect_skies():
    """Bias and chi-squared of closure over many skies at the headline's rate, from the stored benchmark."""
    summary = read_skies() or {"points": {}, "trained": {}, "frozen": {}, "n_skies": 0, "n_trained": 0}
    rows = summary["points"].get(HEADLINE, {})
    out = {"max_bias": MAX_BIAS, "min_trained": MIN_TRAINED}
    out |= {key: summary[key] for key in ("n_skies", "n_trained")}
    out["n_frozen"] = summary["n_skies"] - summary["n_trained"]
    keys = ("recall", "predicted", "bias", "bias_lower", "bias_upper", "chi2", "chi2_lower", "chi2_upper", "passes")
    for name in ("headline", "calibrated", "oracle", "twins"):
        out[name] = {key: rows.get(name, {}).get(key) for key in keys}
        for part in ("frozen", "trained"):  # the rule is not for these alone
            own = summary[part].get(HEADLINE, {}).get(name, {})
            out.setdefault(part, {})[name] = {key: own.get(key) for key in keys[:-4]}
    return out


def _collect_prior():
    """How many percentiles of Collett's forecast the fiducial prior reproduces, from the stored benchmark."""
    stored = read_benchmark("collett_table")
    runs = {run["cut"]: run for run in stored.get("runs", [])}
    weighed = {row["changed"]: row["passed"] for row in stored.get("decompose", {}).get("decompose", [])}
    out = {"n_lenses_alike": weighed.get("evolution + cut"), "n_all_alike": weighed.get("all")}
    for cut, short in (("paper", "specified"), ("run", "public")):
        out |= {f"n_{short}": runs.get(cut, {}).get("n_passed"), "n_tested": runs.get(cut, {}).get("n_tested")}
    return out


def list_counts(summary):
    """Return the texts of the schematic's boxes as a table (box, text)."""
    s, c, network = summary["sampling"], summary["crossmatch"], summary["config"]["training"]["architecture"]
    texts = {
        "catalogues": f"{c['n_entries']:,} entries\n{c['n_systems']:,} systems",
        "survey": "sweeps, pixels", "truth": "read by closure\nand checks only",
        "positives": f"{c['n_matched']:,} systems\nA {c['tier_a']:,}, B {c['tier_b']:,}, S {c['tier_s']:,}",
        "negatives": f"{s['n_negatives']:,} galaxies\n{100 * s['confuser_share']:.0f} % confusers",
        **{split: f"{s[f'positives_{split}']:,} lenses\n{s[f'negatives_{split}']:,} negatives" for split in SPLITS},
        "detector": f"{ARCHITECTURES.get(network, network)}\n{summary['training']['epochs']} epochs",
        "frozen": f"thresholds, hashes\n{summary['run']['detector']}",
        "injections": f"{summary['injections']['n_grid']:,} grid\n{summary['injections']['n_closure']:,} closure",
        "evaluation": "recall at fixed FPR\nprevalence, failures",
        "completeness": f"{summary['completeness']['n_sufficient']} of\n{summary['completeness']['n_cells']} cells",
        "closure": f"{summary['closure']['n_lenses']} lenses\n{summary['closure']['verdict']}",
    }  # fmt: skip
    return pd.DataFrame({"box": list(texts), "text": list(texts.values())})
