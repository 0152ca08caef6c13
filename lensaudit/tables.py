"""The tables of the paper: which rows and columns of a stage's results a reader needs, under which headings.

The body of the paper holds what a claim rests on; what is only reported stands in tables of the appendix. A missing
file, column or key is an error that names it.
"""

import re

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.audit.verdict import tabulate_closure
from lensaudit.wording import (
    CLOSURE_PARTS,
    CLOSURE_ROWS,
    POINTS,
    SAMPLES,
    TIERS,
    name_category,
    name_check,
    name_closure_row,
    name_cut,
    name_stratum,
    name_subset,
)
from lensaudit.wording import SPLITS as SPLIT_NAMES

HEADLINE, STRICT = "fpr_1e-2", "fpr_1e-3"
SPLITS = ("train", "val", "test")
CONTAMINANT = re.compile(r"contaminants, (?P<key>\w+): .*without: (?P<before>[\d.]+), ratio (?P<ratio>[\w.]+)")


def pick(values, path, where):
    """Return the value at a dotted path of nested dicts, or raise the error that names file and key."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            raise UserError(f"{where} lacks {path!r}; run that stage again")
        values = values[key]
    return values


def collect_tables(stage, summary):
    """Collect the tables of the paper.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
    summary : dict
        From `summary.collect_summary`.

    Returns
    -------
    dict of name -> dict
        Keywords of `report.make_table`: table, columns, caption, label and, where wanted, wide.
    """
    simulated = " Simulated sky." if summary["run"]["simulated"] else ""
    makers = {
        "parity": _table_parity, "samples": _table_samples, "thresholds": _table_thresholds, "recall": _table_recall,
        "realism": _table_realism, "realism_reported": _table_reported, "contaminants": _table_contaminants,
        "gates": _table_gates, "closure": _table_closure, "controls": _table_controls,
        "controls_strict": _table_controls_strict, "false_positives": _table_false_positives,
        "prevalence": _table_prevalence,
    }  # fmt: skip
    tables = {name: make(stage) | {"label": f"tab:{name}"} for name, make in makers.items()}
    for entry in tables.values():
        entry["caption"] += simulated
    return tables | {"objections": _table_objections()}


def join_interval(rows, value, lower, upper, digits=3):
    """Return the texts ``value [lower, upper]`` of table columns, with a dash where there is no value.

    Where there is no interval, or one of no width (a threshold that is fixed), the value stands alone.
    """
    texts = []
    for v, low, high in zip(rows[value], rows[lower], rows[upper], strict=True):
        if v is None or not np.isfinite(v):
            texts.append("--")
            continue
        wide = low is not None and high is not None and np.isfinite([low, high]).all() and low < high
        texts.append(f"${v:.{digits}f}$" + (f" [${low:.{digits}f}$, ${high:.{digits}f}$]" if wide else ""))
    return texts


def _table_parity(stage):
    table = stage.read_table("02_sampling", "parity.parquet")
    table = table[~table["cut"].str.startswith("maskbit ")]
    names = table["cut"].map(name_cut)
    table = table.assign(cut=np.where(table["is_detail"], "-- of these: " + names, names))
    columns = {"cut": ("cut", "latex"), "n_removed_in_order": "in order", "n_removed_alone": "alone", "n_left": "left"}
    return {"table": table, "columns": columns, "caption": "Parity report: galaxies that each cut removes, in order "
            "and alone, and those left. Detail rows overlap."}  # fmt: skip


def _table_samples(stage):
    samples = stage.read_table("02_sampling", "samples.parquet", ["tier", "split"])
    table = samples.groupby(["tier", "split"]).size().unstack(fill_value=0).reset_index()
    table["tier"] = table["tier"].map(lambda t: TIERS.get(t, t))
    splits = [s for s in (*SPLITS, "silver") if s in table]
    return {"table": table, "columns": {"tier": "tier or pool", **{s: SPLIT_NAMES[s] for s in splits}},
            "caption": "Lenses by tier and negatives by pool in each split. Silver lenses come from spectroscopic "
            "channels and neither train nor set thresholds."}  # fmt: skip


def _table_thresholds(stage):
    entries = stage.read_json("05_evaluation", "thresholds.json")
    table = pd.DataFrame([{"point": POINTS.get(name, name), **entry} for name, entry in entries.items()])
    for column in ("achieved_test_fpr", "achieved_test_fpr_lower", "achieved_test_fpr_upper"):
        table[column] = 100 * pd.to_numeric(table[column])
    for column in ("threshold", "lower", "upper"):
        table[column] = pd.to_numeric(table[column])
    table["logit"] = join_interval(table, "threshold", "lower", "upper", 2)
    table["fpr"] = join_interval(table, *(f"achieved_test_fpr{b}" for b in ("", "_lower", "_upper")), 2)
    columns = {"point": ("operating point", "latex"), "logit": ("logit", "latex"),
               "fpr": ("test FPR [\\%]", "latex"), "status": "status"}  # fmt: skip
    return {"table": table, "columns": columns, "caption": "Operating points set on validation negatives "
            "of pool N1, and the false positive rate achieved on test, with 95 per cent intervals."}  # fmt: skip


def _table_recall(stage):
    rows = pd.DataFrame(pick(stage.read_json("05_evaluation", "evaluation.json"), "recall", "evaluation.json"))
    rows = rows[rows["n"] > 0].assign(text=lambda t: join_interval(t, "recall", "lower_total", "upper_total"))
    table = rows[rows["point"] == HEADLINE][["subset", "n", "text"]]
    strict = rows[rows["point"] == STRICT].set_index("subset")["text"]
    table = table.assign(strict=table["subset"].map(strict).fillna("--"), subset=table["subset"].map(name_subset))
    # Channels are listed apart, but none is independent of how the others found their lenses.
    table["subset"] = table["subset"].str.replace("an independent channel", "another channel")
    columns = {"subset": ("labelled lenses", "latex"), "n": "$n$", "text": (POINTS[HEADLINE], "latex"),
               "strict": (POINTS[STRICT], "latex")}  # fmt: skip
    return {"table": table, "columns": columns, "wide": True, "caption": "Held-out evaluation: recall of labelled test "
            "lenses with 95 per cent intervals that include the error of the threshold. Visible: blind arc S/N above "
            "two. A dash: cannot be computed."}  # fmt: skip


def _read_checks(stage):
    table = stage.read_table("06_injection_realism", "realism.parquet")
    return table[table["sample"] != "targets"]


def _table_realism(stage):
    table = _read_checks(stage)
    table = table[table["outcome"] != "reported"]
    rules = table["threshold"].astype(str).str.replace(r"-(?=\d)", "$-$", regex=True).str.replace("<", "$<$")
    table = table.assign(value=join_interval(table, "value", "lower", "upper"), check=table["check"].map(name_check),
                         sample=table["sample"].map(lambda s: SAMPLES.get(s, s)), threshold=rules)  # fmt: skip
    columns = {"check": ("check", "latex"), "sample": "sample", "value": ("value", "latex"),
               "threshold": ("rule", "latex"), "outcome": "outcome"}  # fmt: skip
    return {"table": table, "columns": columns, "wide": True,
            "caption": "Realism report: the graded checks with value, 95 per cent interval, rule fixed in advance and "
            "outcome. Ratios and differences are injections against lenses. KS: Kolmogorov--Smirnov."}  # fmt: skip


def _table_reported(stage):
    table = _read_checks(stage)
    table = table[(table["outcome"] == "reported") & ~table["check"].str.startswith("contaminants, ")]
    table = table.assign(check=table["check"].map(name_check))
    columns = {"check": ("quantity", "latex"), "value": "value"}
    return {"table": table, "columns": columns, "caption": "Realism report: quantities without a rule."}


def _table_contaminants(stage):
    table = _read_checks(stage)
    parts = table["check"].str.extract(CONTAMINANT)
    table = table.join(parts).dropna(subset="key")
    names = table["key"].replace("all", "all confusers").map(name_category)
    table = table.assign(key=names, before=pd.to_numeric(table["before"]),
                         after=join_interval(table, "value", "lower", "upper"))  # fmt: skip
    columns = {"key": ("galaxies", "latex"), "before": "without", "after": ("with a source", "latex")}
    return {"table": table, "columns": columns, "caption": "Share of galaxies above the threshold of the headline, "
            "as they are and with a blue source painted on at one side, with 95 per cent intervals."}  # fmt: skip


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


def _read_closure(stage):
    closure = stage.read_json("07_completeness", "closure.json")
    other = pick(closure, "companion", "closure.json")
    table = pd.concat([tabulate_closure(closure), tabulate_closure(other, "companion")], ignore_index=True)
    table["point"] = table["fpr"].map({0.01: POINTS[HEADLINE], 0.001: POINTS[STRICT]})
    for name in ("recall", "predicted"):
        columns = [name, f"{name}_lower", f"{name}_upper"]
        table[columns] = table[columns].apply(pd.to_numeric)
        table[f"{name}_text"] = join_interval(table, *columns)
    return closure, table


def _table_closure(stage):
    _, table = _read_closure(stage)
    aside = (table["detector"] == "companion") & table["row"].isin(("extended", "grid"))
    table = table[~table["row"].str.contains(" / ") & ~aside]
    table = table.assign(row=table["row"].map(name_closure_row))
    columns = {"detector": "detector", "point": ("operating point", "latex"), "row": ("injections", "latex"),
               "n_lenses": "$n$", "n_unsupported": "unsupported", "recall_text": ("recall", "latex"),
               "predicted_text": ("predicted", "latex"), "verdict": "verdict"}  # fmt: skip
    return {"table": table, "columns": columns, "wide": True,
            "caption": "Closure. Recall of $n$ held-out Tier-A lenses with its Jeffreys interval (shown, not used) and "
            "the recall predicted by injections with its 95 per cent predictive interval; unsupported lenses are on "
            "neither side. Refused: a guard on the weights of the row fails."}  # fmt: skip


def _table_controls(stage, point="headline", name=HEADLINE):
    closure, table = _read_closure(stage)
    entry, table = closure if point == "headline" else pick(closure, point, "closure.json"), table.set_index("row")
    own = table[(table["operating_point"] == point) & (table["detector"] == "audited")]
    rows = []
    order = list(CLOSURE_ROWS)  # the correct injections, against which controls are judged, come first
    for kind in sorted(entry["controls"], key=lambda k: (order.index(k) if k in order else len(order), k)):
        control = entry["controls"][kind]
        row = {"control": name_closure_row(kind), "must": "yes" if control["must_fail"] else "",
               "caught": ", ".join(CLOSURE_PARTS[part] for part in control["caught_by"])}  # fmt: skip
        parts = [part for part in CLOSURE_PARTS if part in control]
        rows.append(row | {part: own.loc[f"{kind} / {part}", "predicted_text"] for part in parts})
    columns = {"control": ("control", "latex"), "conditional": ("conditional", "latex"),
               "calibrated": ("selection inferred", "latex"), "twins": ("twins", "latex"), "must": "must fail",
               "caught": "caught by"}  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(columns))
    return {"table": frame, "columns": columns, "wide": True, "caption": "Negative controls at "
            f"{POINTS[name]}: recall predicted by injections with a planted mistake, beside that by as many correct "
            "ones, with 95 per cent predictive intervals. A row catches a control when it does not close where that of "
            "the correct injections does not fail; a control that none catches shows a limit of the test."}  # fmt: skip


def _table_controls_strict(stage):
    return _table_controls(stage, STRICT, STRICT)


def _table_false_positives(stage):
    table = stage.read_table("08_failure_modes", "false_positives.parquet")
    table = table[(table["point"] == HEADLINE) & table["axis"].isin(("pool", "confuser proxy", "TYPE"))].copy()
    table["stratum"] = [name_stratum(a, s) for a, s in zip(table["axis"], table["stratum"], strict=True)]
    table["rate"] = join_interval(table, "per_1e4", "lower", "upper", 1)
    columns = {"stratum": ("galaxies", "latex"), "n": "$n$", "k": "$k$", "rate": ("per $10^4$", "latex")}
    return {"table": table, "columns": columns, "caption": "False positives per $10^4$ galaxies at a target rate of "
            "$10^{-2}$: $k$ of $n$ galaxies by pool, confuser proxy and morphological type, with 95 per cent "
            "intervals."}  # fmt: skip


def _table_prevalence(stage):
    table = stage.read_table("08_failure_modes", "prevalence.parquet")
    table = table[table["point"].isin((HEADLINE, STRICT))].copy()
    table["purity"] = join_interval(table, "purity", "lower", "upper", 4)
    table["point"] = table["point"].map(POINTS)
    columns = {"point": ("operating point", "latex"), "prevalence": ("prevalence", "sci"),
               "purity": ("purity", "latex")}  # fmt: skip
    return {"table": table, "columns": columns, "caption": "Purity against stated prevalence, from the recall of "
            "Tier-A lenses and the false positive rate of the parent population."}  # fmt: skip


# objection, answer, where: a figure, table or section of the paper, or a test file.
OBJECTIONS = (
    ("The injections are not realistic", "rules fixed in advance; effective numbers given",
     "tab:realism"),
    ("The prediction was tuned to the lenses", "targets from train and validation only",
     "tests/house/test_graph.py"),
    ("The detector was chosen on injections", "frozen and hashed before any injection", "sec:detector"),
    ("Closure could not have failed", "controls with planted mistakes", "tab:controls"),
    ("Sky and engine share errors", "no shared code, by test", "tests/house/test_architecture.py"),
    ("The prior decides the answer", "it does, step by step; twins leave it out", "fig:closure_gap"),
    ("One sky proves little", "further skies under a rule of their own", "sec:closure"),
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
