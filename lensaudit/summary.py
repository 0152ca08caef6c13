"""The numbers, tables and answers of the paper, collected from the stages; nothing is measured here that a stage has.

`collect_summary` returns one nested dict of plain values; notebook 09 writes it as JSON and `report.make_macros` turns
it into LaTeX. `collect_tables` returns the tables with their headings. A missing file, column or key is an error that
names it.
"""

import dataclasses

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.audit.closure import tabulate_closure
from lensaudit.audit.verdict import UNSPOILED

HEADLINE, STRICT = "fpr_1e-2", "fpr_1e-3"
SPLITS = ("train", "val", "test")
INTERVAL = ("recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper")
OUTCOMES = {"GO": "n_go", "NO-GO": "n_no_go", "inconclusive": "n_inconclusive", "not graded": "n_not_graded"}
POINT_NAMES = {
    "fpr_1e-2": r"FPR $10^{-2}$", "fpr_1e-3": r"FPR $10^{-3}$", "fpr_1e-4": r"FPR $10^{-4}$",
    "score_0.3": r"score $> 0.3$", "score_0.5": r"score $> 0.5$",
}  # fmt: skip
FORMATS = {
    "matched_fraction": "pct", "confuser_share": "pct", "refused_fraction": "pct", "fprs": "sci", "achieved": "sci",
    "prevalence": "sci", "purity": ".2f", "n_eff": ".1f", "theta_small": ".2f", "theta_large": ".2f", "config.": "g",
}  # fmt: skip


def pick(values, path, where):
    """Return the value at a dotted path of nested dicts, or raise the error that names file and key."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            raise UserError(f"{where} lacks {path!r}; run that stage again")
        values = values[key]
    return values


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
        "injections": _collect_injections(stage), "completeness": _collect_completeness(stage),
        "gates": _collect_gates(stage), **_collect_closure(closure),
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
    failed = list(gates.loc[gates["outcome"] == "fail", "gate"])
    out |= {"n_gates": len(gates), "n_gates_failed": len(failed), "gates_failed": "; ".join(failed) or "none"}
    recall = {(r["subset"], r["point"]): r for r in pick(result, "recall", where)}
    for tier in "AB":
        row = recall.get((f"Tier {tier}", HEADLINE), {})
        out |= {f"n_tier_{tier}": row.get("n"), f"recall_tier_{tier}": row.get("recall"),
                **{f"recall_tier_{tier}_{b}": row.get(f"{b}_total") for b in ("lower", "upper")}}
    return out


def _collect_realism(stage):
    checks = stage.read_table("06_injection_realism", "realism.parquet", ["sample", "check", "outcome"])
    checks = checks[checks["sample"] != "targets"]
    counts = {name: int((checks["outcome"] == outcome).sum()) for outcome, name in OUTCOMES.items()}
    verdict = pick(stage.read_json("06_injection_realism", "realism.json"), "outcome", "realism.json")
    return counts | {"n_checks": len(checks), "verdict": verdict}


def _collect_injections(stage):
    tables = {"grid": "grid_injections", "closure": "closure_injections", "deployment": "deployment_injections",
              "twins": "twins", "controls": "controls"}  # fmt: skip
    out = {f"n_{name}": len(stage.read_table("07_completeness", f"{file}.parquet", ["injection_id"]))
           for name, file in tables.items()}  # fmt: skip
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
    for population in ("lenses", "injections"):
        rows = table[(table["axis"] == "all") & (table["population"] == population)]
        row = rows.iloc[0] if len(rows) else {}
        out[population] = {name: row.get(name) for name in ("n", "p_d", "p_m_d", "p_m_nd", "recall", "missed_invisible",
                                                            "missed_visible")}  # fmt: skip
    return out


def _collect_closure(closure):
    """Sections closure, strict, twins, grid and controls from closure.json."""
    where = "closure.json of 07_completeness"
    out = {}
    for name, entry in (("closure", closure), ("strict", pick(closure, STRICT, where))):
        keys = (*INTERVAL, "n_lenses", "n_unsupported", "verdict", "closes", "half_width")
        out[name] = {key: pick(entry, key, where) for key in keys}
        out[name]["max_abs_z"] = pick(entry, "tertiles.max_abs_z", where)
        out[name]["limit"] = pick(entry, "tertiles.limit", where)
    for name in ("twins", "extended", "oracle", "grid"):
        row = pick(closure, name, where)
        out[name] = {key: row.get(key) for key in (*INTERVAL, "n_lenses", "n_eff", "verdict", "closes")}
    # Correct injections of the same number are what controls are judged against, not a control.
    controls = {name: row for name, row in pick(closure, "controls", where).items() if name != UNSPOILED}
    must = {name: row for name, row in controls.items() if row["must_fail"]}
    out["controls"] = {
        "n_controls": len(controls), "n_caught": sum(r["caught"] for r in controls.values()), "n_must_fail": len(must),
        "n_must_fail_caught": sum(r["caught"] for r in must.values()),
        **{name: {"caught": row["caught"], "predicted": row["conditional"]["predicted"],
                  "twins_predicted": row["twins"]["predicted"]} for name, row in controls.items()},
    }  # fmt: skip
    return out


def collect_tables(stage, summary):
    """Collect the tables of the paper.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
    summary : dict
        From `collect_summary`.

    Returns
    -------
    dict of name -> dict
        Keywords of `report.make_table`: table, columns, caption, label and, where wanted, wide.
    """
    simulated = " Simulated sky." if summary["run"]["simulated"] else ""
    makers = {
        "parity": _table_parity, "samples": _table_samples, "thresholds": _table_thresholds, "recall": _table_recall,
        "realism": _table_realism, "gates": _table_gates, "closure": _table_closure,
        "false_positives": _table_false_positives, "prevalence": _table_prevalence,
    }  # fmt: skip
    tables = {name: make(stage) | {"label": f"tab:{name}"} for name, make in makers.items()}
    for entry in tables.values():
        entry["caption"] += simulated
    return tables | {"objections": _table_objections()}


def join_interval(rows, value, lower, upper, digits=3):
    """Return the texts ``value [lower, upper]`` of table columns, with a dash where there is no value."""
    texts = []
    for v, low, high in zip(rows[value], rows[lower], rows[upper], strict=True):
        known = v is not None and np.isfinite(v)
        texts.append(f"${v:.{digits}f}$ [{low:.{digits}f}, {high:.{digits}f}]" if known else "--")
    return texts


def _table_parity(stage):
    table = stage.read_table("02_sampling", "parity.parquet")
    table = table[~table["cut"].str.startswith("maskbit ")]
    names = table["cut"].str.replace("_", " ")
    table = table.assign(cut=np.where(table["is_detail"], "-- of these " + names, names))
    columns = {"cut": "cut", "n_removed_in_order": "in order", "n_removed_alone": "alone", "n_left": "left"}
    return {"table": table, "columns": columns, "caption": "Parity report: galaxies that each cut removes, in order "
            "and alone, and those left. Detail rows overlap."}  # fmt: skip


def _table_samples(stage):
    samples = stage.read_table("02_sampling", "samples.parquet", ["tier", "split"])
    table = samples.groupby(["tier", "split"]).size().unstack(fill_value=0).reset_index()
    splits = [s for s in (*SPLITS, "silver") if s in table]
    return {"table": table, "columns": {"tier": "tier or pool", **{s: s for s in splits}},
            "caption": "Lenses by tier and negatives by pool in each split. Silver rows come from spectroscopic "
            "channels and neither train nor set thresholds."}  # fmt: skip


def _table_thresholds(stage):
    entries = stage.read_json("05_evaluation", "thresholds.json")
    table = pd.DataFrame([{"point": POINT_NAMES.get(name, name), **entry} for name, entry in entries.items()])
    for column in ("achieved_test_fpr", "achieved_test_fpr_lower", "achieved_test_fpr_upper"):
        table[column] = 100 * pd.to_numeric(table[column])
    for column in ("threshold", "lower", "upper"):
        table[column] = pd.to_numeric(table[column])
    table["logit"] = join_interval(table, "threshold", "lower", "upper", 2)
    table["fpr"] = join_interval(table, *(f"achieved_test_fpr{b}" for b in ("", "_lower", "_upper")))
    columns = {"point": ("operating point", "latex"), "logit": ("logit [95 \\%]", "latex"),
               "fpr": ("test FPR [\\%]", "latex"), "status": "status"}  # fmt: skip
    return {"table": table, "columns": columns, "wide": True, "caption": "Operating points set on validation negatives "
            "of pool N1, and the false positive rate achieved on test with its 95 per cent interval."}  # fmt: skip


def _table_recall(stage):
    rows = pd.DataFrame(pick(stage.read_json("05_evaluation", "evaluation.json"), "recall", "evaluation.json"))
    rows = rows[rows["n"] > 0].assign(text=lambda t: join_interval(t, "recall", "lower_total", "upper_total"))
    table = rows[rows["point"] == HEADLINE][["subset", "n", "text"]]
    strict = rows[rows["point"] == STRICT].set_index("subset")["text"]
    table = table.assign(strict=table["subset"].map(strict).fillna("--"))
    columns = {"subset": "labelled lenses", "n": "$n$", "text": (POINT_NAMES[HEADLINE], "latex"),
               "strict": (POINT_NAMES[STRICT], "latex")}  # fmt: skip
    return {"table": table, "columns": columns, "wide": True, "caption": "Held-out evaluation: recall of labelled test "
            "lenses with 95 per cent intervals that include the error of the threshold. A dash: cannot be "
            "computed."}  # fmt: skip


def _table_realism(stage):
    table = stage.read_table("06_injection_realism", "realism.parquet")
    table = table[table["sample"] != "targets"]
    columns = {name: name for name in ("sample", "check", "value", "lower", "upper")}
    columns |= {"threshold": "rule", "outcome": "outcome"}
    return {"table": table, "columns": columns, "wide": True,
            "caption": "Realism report: value, 95 per cent bounds, rule fixed in advance, outcome."}  # fmt: skip


def _table_gates(stage):
    table = stage.read_table("07_completeness", "two_gates.parquet")
    table = table[table["axis"] == "all"].copy()
    columns = {"population": "population", "n": "$n$"}
    heads = {"p_d": "P(D)", "p_m_d": "P(M$|$D)", "p_m_nd": "P(M$|$not D)", "recall": "P(M)"}
    for name, head in heads.items():
        table[name] = join_interval(table, name, f"{name}_lower", f"{name}_upper", 2)
        columns[name] = (head, "latex")
    return {"table": table, "columns": columns, "wide": True, "caption": "Two gates at a false positive rate of "
            "$10^{-2}$: detectability D and model M, with 95 per cent intervals."}  # fmt: skip


def _table_closure(stage):
    table = tabulate_closure(stage.read_json("07_completeness", "closure.json"))
    names = table["row"].replace({"main": "closure set", "extended": "closure set, with arc energy",
                                   "oracle": "closure set, with true arc S/N"})
    names = names.str.replace(UNSPOILED, "correct injections, same number").str.replace("_", " ")
    numbers = ("recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper")
    table = table.assign(row=names, point=table["fpr"].map({0.01: POINT_NAMES[HEADLINE], 0.001: POINT_NAMES[STRICT]}),
                         **{n: pd.to_numeric(table[n]) for n in numbers})  # fmt: skip
    table["observed"] = join_interval(table, *numbers[:3])
    table["expected"] = join_interval(table, *numbers[3:])
    columns = {"point": ("operating point", "latex"), "row": "row", "n_lenses": "$n$",
               "observed": ("recall", "latex"), "expected": ("predicted", "latex"), "verdict": "verdict"}  # fmt: skip
    return {"table": table, "columns": columns, "wide": True, "caption": "Closure. Recall of held-out Tier-A lenses "
            "with its Jeffreys interval (shown, not used) and the recall predicted by injections with its 95 per cent "
            "predictive interval. Controls carry a planted mistake and are judged against correct injections of "
            "the same number; a control that closes shows a limit of the test. Refused: a guard on the weights "
            "of the row fails."}  # fmt: skip


def _table_false_positives(stage):
    table = stage.read_table("08_failure_modes", "false_positives.parquet")
    table = table[(table["point"] == HEADLINE) & table["axis"].isin(("all", "pool", "confuser proxy", "TYPE"))].copy()
    table["rate"] = join_interval(table, "per_1e4", "lower", "upper", 1)
    columns = {"axis": "by", "stratum": "stratum", "n": "$n$", "k": "$k$", "rate": ("per $10^4$", "latex")}
    return {"table": table, "columns": columns, "caption": "False positives per $10^4$ galaxies at a target rate of "
            "$10^{-2}$, with 95 per cent intervals."}  # fmt: skip


def _table_prevalence(stage):
    table = stage.read_table("08_failure_modes", "prevalence.parquet")
    table = table[table["point"].isin((HEADLINE, STRICT))].copy()
    table["purity"] = join_interval(table, "purity", "lower", "upper", 4)
    table["point"] = table["point"].map(POINT_NAMES)
    columns = {"point": ("operating point", "latex"), "prevalence": ("prevalence", "sci"),
               "purity": ("purity", "latex"), "status": "status"}  # fmt: skip
    return {"table": table, "columns": columns, "caption": "Purity against stated prevalence, from the recall of "
            "Tier-A lenses and the false positive rate of the parent population."}  # fmt: skip


# objection, answer, where: a figure, table or section of the paper, or a test file.
OBJECTIONS = (
    ("The injections are not realistic", "rules fixed in advance; NO-GO blocks the product",
     "tab:realism"),
    ("The prediction was tuned to the lenses", "targets from train and validation only",
     "tests/house/test_graph.py"),
    ("The detector was chosen on injections", "frozen and hashed before any injection", "sec:detector"),
    ("Closure could not have failed", "controls with planted mistakes", "tab:closure"),
    ("Sky and engine share errors", "no shared code, by test", "tests/house/test_architecture.py"),
    ("The prior decides the answer", "twins with true parameters; weights released", "tab:closure"),
    ("The grid average is not the recall", "said so; reweighted grid beside it", "sec:completeness"),
    ("Hosts are reused", "effective number from pair correlations", "sec:completeness"),
    ("Test lenses leak into training", "systems grouped; four kinds of overlap counted", "sec:splits"),
    ("The network uses shortcuts", "single features on matched negatives", "fig:shortcuts"),
    ("Thresholds are noisy", "count rule; their error is in the intervals", "tab:thresholds"),
    ("Labels are wrong", "tiers apart; wrong labels known to the sky", "tab:recall"),
    ("Misses are invisible anyway", "two gates at one false positive rate", "tab:gates"),
    ("Purity is quoted without prevalence", "never; purity against prevalence", "tab:prevalence"),
    ("Held-out lenses share the training channel", "said so; channels kept apart", "sec:independence"),
    ("The numbers cannot be reproduced", "one command; hashes; stored values compared", "tests/test_report.py"),
)  # fmt: skip


def _table_objections():
    rows = [{"objection": text, "answer": answer, "where": _refer(where)} for text, answer, where in OBJECTIONS]
    columns = {"objection": "objection", "answer": "answer", "where": ("where", "latex")}
    return {"table": pd.DataFrame(rows), "columns": columns, "label": "tab:objections", "wide": True,
            "caption": "Likely objections and where each is answered."}  # fmt: skip


def _refer(where):
    kind, _, _ = where.partition(":")
    words = {"fig": "Fig.", "tab": "Table", "sec": "Section"}
    if kind in words:
        return rf"{words[kind]}~\ref{{{where}}}"
    return rf"\texttt{{{where.replace('_', chr(92) + '_')}}}"


def list_counts(summary):
    """Return the texts of the schematic's boxes as a table (box, text)."""
    s, c = summary["sampling"], summary["crossmatch"]
    texts = {
        "catalogues": f"{c['n_entries']:,} entries\n{c['n_systems']:,} systems",
        "survey": "sweeps, pixels", "truth": "read by closure\nand checks only",
        "positives": f"{c['n_matched']:,} systems\nA {c['tier_a']:,}, B {c['tier_b']:,}, S {c['tier_s']:,}",
        "negatives": f"{s['n_negatives']:,} galaxies\n{100 * s['confuser_share']:.0f}% confusers",
        **{split: f"{s[f'positives_{split}']:,} lenses\n{s[f'negatives_{split}']:,} negatives" for split in SPLITS},
        "detector": f"{summary['config']['training']['architecture']}\n{summary['training']['epochs']} epochs",
        "frozen": f"thresholds, hashes\n{summary['run']['detector']}",
        "injections": f"{summary['injections']['n_grid']:,} grid\n{summary['injections']['n_closure']:,} closure",
        "evaluation": "recall at fixed FPR\nprevalence, failures",
        "completeness": f"{summary['completeness']['n_sufficient']} of\n{summary['completeness']['n_cells']} cells",
        "closure": f"{summary['closure']['n_lenses']} lenses\n{summary['closure']['verdict']}",
    }  # fmt: skip
    return pd.DataFrame({"box": list(texts), "text": list(texts.values())})
