"""The ablation ladder: from the prior work's injections to the fiducial ones, one ingredient at a time (SPEC 7.6).

Every rung is run at both ends. *First-in*: the published set with this ingredient alone made fiducial, minus the
published set. *Last-out*: the fiducial set minus the fiducial set with this ingredient put back. Rungs that neither end
has (gain 150, sky noise added again, ...) are added to either end: that set minus the end. Random numbers, Einstein
radii, seeing and depth are shared, so that a rung which changes nothing differs by exactly zero.

On the simulated sky it shows what *can* open a gap between completeness and recall; it never says what did elsewhere.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError, find_root, load_dataset
from lensaudit.audit.campaign import run_injections
from lensaudit.audit.card import BALAJI, PUBLISHED
from lensaudit.audit.recovery import KernelModel, fit_scaler
from lensaudit.constants import BANDS
from lensaudit.injection.bank import read_catalogue
from lensaudit.injection.controls import suppress_inner
from lensaudit.injection.light import host_rows, read_psf
from lensaudit.injection.population import draw_structure, load_prior
from lensaudit.injection.rungs import DRAWN, draw_rung, plan_rungs

ENDS = ("published_2026", "collett")
POINTS = ("score_0.3", "fpr_1e-2", "fpr_1e-3")  # operating points, the prior work's first
# In the order of the cumulative picture: what is drawn, then what becomes of the light.
PATH = {
    "magnitudes": "source magnitudes", "colours": "source colours", "radius": "source size",
    "clumps": "source clumps", "index": "source Sersic index", "axis_ratio": "source axis ratio",
    "position": "source position", "hosts": "hosts: random to deflectors", "tie": "theta_E tied to sigma",
    "mass": "mass shape tied to light", "psf_shape": "PSF: Gaussian to Moffat", "psf_band": "PSF per band",
    "arc_noise": "arc's own noise", "cuts": "only detectable arcs",
}  # fmt: skip
# Rungs that neither end has, and the ends they mean something at.
ADDED = {
    "gain_150": ("gain 150 e/nMgy", ENDS), "white_noise": ("arc noise uncorrelated", ENDS[1:]),
    "sky_noise": ("sky noise added again", ENDS), "epl": ("EPL in place of SIE", ENDS),
    "multipoles": ("multipoles m = 3, 4", ENDS), "no_inner_images": ("inner images left out", ENDS),
    "psf_beta_2.5": ("Moffat beta 2.5", ENDS[1:]), "psf_beta_4.5": ("Moffat beta 4.5", ENDS[1:]),
    "brick_psf": ("brick-average PSF", ENDS[1:]), "bank": ("real galaxies as sources", ENDS),
}  # fmt: skip
RETRAINED = {"clip_20": "clip 20, retrained", "seeds": "training seed"}
PAIR = {"completeness, flat average, 385 cells": "completeness", "recall, Tier A": "recall"}  # of the card
BANK = "hst_cosmos_stamps"  # describes the catalogue of real galaxies under a data root
# Slope: Auger+ 2010, ApJ 724, 511. Multipoles: a hundredth of theta_E, the size of isophotes' (an assumption).
STRUCTURE = {"epl": {"slope": [2.078, 0.16]}, "multipoles": {"multipoles": [0.01, 0.01]}}
# Seeing and depth are matched in every set; S/N as the truth table has it, so possible on the simulated sky only.
WEIGHTINGS = {"flat": (), "population": (), "lenses": ("theta_E", "psfsize_r", "depth_r"),
              "lenses_snr": ("theta_E", "psfsize_r", "depth_r", "arc_snr_true")}  # fmt: skip
BANDWIDTH = 0.3  # of the lens kernels, in robust standard deviations of the fiducial injections


@dataclass(frozen=True)
class Rung:
    """One set of injections: which ingredients are fiducial, and what is added to them.

    Parameters
    ----------
    name : str
    fiducial : frozenset of str
        Names of `PATH`.
    added : str
        Name of `ADDED`, or empty.
    is_end : bool
        Run on more injections, for its own completeness; of these the other sets' are the pairs.
    """

    name: str
    fiducial: frozenset = field(default_factory=frozenset)
    added: str = ""
    is_end: bool = False


def find_bank(config):
    """Return images of real galaxies to be sources, None where the configuration's data root has none.

    Parameters
    ----------
    config : lensaudit.config.Config

    Returns
    -------
    lensaudit.lensing.sources.ImageBank or None
        The COSMOS galaxies of ``data_manifests/hst_cosmos_stamps.toml``: few, bright and with their telescope's PSF.
    """
    path = Path(config.data_root) / load_dataset(BANK)["files"][0]["path"]
    return read_catalogue(path, unit="count/s").images if config.data_root and path.is_file() else None


def list_rungs(bank=None):
    """Return every set the ladder needs: both ends, each rung first-in and last-out, and the cumulative steps.

    The rung of real galaxies is among them where there is a bank of them.
    """
    whole, names = frozenset(PATH), list(PATH)
    out = [Rung(ENDS[0], is_end=True), Rung(ENDS[1], whole, is_end=True)]
    for name in names:
        out += [Rung(f"{name}/first", frozenset([name])), Rung(f"{name}/last", whole - {name})]
    out += [Rung(f"{name}/cumulative", frozenset(names[: k + 1])) for k, name in enumerate(names)]
    for name, (_, ends) in ADDED.items():
        if name == "bank" and bank is None:
            continue
        for end, kind, base in zip(ENDS, ("first", "last"), (frozenset(), whole), strict=True):
            if end in ends:
                out.append(Rung(f"{name}/{kind}", base, name))
    return out


def choose_light(rung, table, hosts, published, bank=None):
    """Return the keywords of `injection.inject.inject` of one set.

    Parameters
    ----------
    rung : Rung
    table, hosts : pandas.DataFrame
    published : dict
        The published prior, whose ``[light]`` holds its PSF.
    bank : lensing.sources.ImageBank, optional
        For the rung that needs one.
    """
    own = host_rows(table, hosts)
    light = {"psf_mode": "moffat", "psfsize": None, "noise": "arc_noise" in rung.fiducial}
    old = read_psf(published, own)
    light |= {} if "psf_shape" in rung.fiducial else {"psf_mode": old["psf_mode"]}
    light |= {} if "psf_band" in rung.fiducial else {"psfsize": old["psfsize"]}
    if rung.added == "gain_150":
        light |= {"noise": True, "gain_override": 150.0}
    elif rung.added == "white_noise":
        light["correlated"] = False
    elif rung.added == "sky_noise":
        light["sky_noise"] = True
    elif rung.added == "bank":
        light["bank"] = bank
    elif rung.added == "brick_psf":
        names = [f"psfsize_{b}" for b in BANDS]
        light["psfsize"] = hosts.groupby("brickname")[names].mean().loc[own["brickname"]].to_numpy()
    return light


def add_structure(rung, table, seed, bank=None):
    """Return the table with what a rung adds to mass and light beside the ends' own.

    A real galaxy takes the place of disc and clumps, with their flux, half-light radius and angle; magnification and
    S/N stay those measured on the disc, so that it is weighted alike.
    """
    if rung.added == "no_inner_images":
        return suppress_inner(table)
    if rung.added.startswith("psf_beta_"):
        return table.assign(psf_beta=float(rung.added.removeprefix("psf_beta_")))
    ids = table["injection_id"].to_numpy()
    if rung.added == "bank":
        u = streams.draw_uniforms(seed, "injection/ladder/bank", ids, 1)[:, 0]
        return table.assign(bank_index=(u * len(bank.half_light)).astype(int), n_clumps=0, clump_fraction=0.0)
    if rung.added not in STRUCTURE:
        return table
    prior = {"deflector": STRUCTURE[rung.added], "source": {}}
    return table.assign(**draw_structure(seed, "injection/ladder/structure", ids, 1, np.arange(len(ids)), table, prior))


def run_ladder(hosts, boxes, detector, config, folder, rungs=None, draw=draw_rung, bank=None):
    """Draw, render and score every set of the ladder.

    Parameters
    ----------
    hosts, boxes, detector, config, folder
        As `campaign.run_injections` takes them; section ``ladder`` of the configuration.
    rungs : sequence of Rung, optional
        All of `list_rungs` by default.
    draw : callable
        In place of `injection.rungs.draw_rung`.
    bank : lensing.sources.ImageBank, optional
        From `find_bank`, for the rung of real galaxies.

    Returns
    -------
    pandas.DataFrame
        One row per set and injection: run, injection_id, host_index, brickname, theta_E, psfsize_r, depth_r,
        arc_snr_true, mu, the weights of `plan_rungs`, logit. An end stands twice: the rows that are paired with the
        other sets, and all of its own as ``<end>/whole``.
    """
    priors, drawn, done, parts, n = tuple(load_prior(name) for name in ENDS), {}, {}, [], config.ladder.n_injections
    plan = plan_rungs(hosts, config.completeness, n * config.ladder.ends_factor, config.seed, priors[1])
    rungs = list_rungs(bank) if rungs is None else list(rungs)
    for number, rung in enumerate(rungs):
        key = rung.fiducial & set(DRAWN), rung.is_end
        if key not in drawn:
            drawn[key] = draw(plan if rung.is_end else plan.head(n), hosts, key[0], priors, config, config.seed)
        if rung.is_end or (rung.fiducial, rung.added) not in done:
            table = add_structure(rung, drawn[key], config.seed, bank)
            label = f"ladder {number + 1} of {len(rungs)}"
            block = -(-len(table) // 2) or 1  # two blocks, one for each core
            scored = run_injections(table, hosts, boxes, detector, config, folder, label, block_rows=block,
                                    measure=False, **choose_light(rung, table, hosts, priors[0], bank))  # fmt: skip
            kept = ["injection_id", "host_index", "brickname", "theta_E", "psfsize_r", "depth_r", "arc_snr_true", "mu",
                    "flat_weight", "population_weight", "logit"]  # fmt: skip
            paired = scored["injection_id"].isin(plan["injection_id"].head(n))
            done[rung.fiducial, rung.added] = scored.loc[paired, kept]
            if rung.is_end:
                parts.append(scored[kept].assign(run=f"{rung.name}/whole"))
        parts.append(done[rung.fiducial, rung.added].assign(run=rung.name))
    return pd.concat(parts, ignore_index=True)


def weigh_set(part, weighting, lenses, scaler):
    """Return the weights of one set's rows under one weighting, mean 1.

    Parameters
    ----------
    part : pandas.DataFrame
    weighting : str
        ``"flat"``: every cell theta_E x seeing x depth alike; ``"population"``: the fiducial prior's theta_E and the
        survey's hosts; else kernels around the lenses in the columns of `scaler`, every lens counting the same.
    lenses : pandas.DataFrame
    scaler : recovery.Scaler or None
    """
    if scaler is None:
        weight = part[f"{weighting}_weight"].to_numpy()
    else:
        kernel = KernelModel(part, np.zeros(len(part)), BANDWIDTH, scaler).weigh(lenses).astype(np.float64)
        weight = (kernel / kernel.sum(axis=1, keepdims=True)).sum(axis=0)
    return weight / weight.mean()


class Sets:
    """Completeness of every set, with bootstrap draws in which a brick counts alike in all sets.

    Parameters
    ----------
    scored : pandas.DataFrame
        From `run_ladder`.
    lenses : pandas.DataFrame
        Held-out lenses with logit and the weightings' columns; they set weights and are compared with, nothing else.
    thresholds : dict of name -> float or None
        On the logit; None is left out.
    config : lensaudit.config.Config
    """

    def __init__(self, scored, lenses, thresholds, config):
        self.thresholds = {k: v for k, v in thresholds.items() if v is not None}
        self.runs = {name: part.reset_index(drop=True) for name, part in scored.groupby("run", sort=False)}
        missing = [name for name in ENDS if name not in self.runs]
        if missing:
            raise UserError(f"ladder: no injections of {', '.join(missing)}; run both ends")
        self.config, self.lenses, self.weightings = config, lenses, {}
        self.whole = {end: f"{end}/whole" if f"{end}/whole" in self.runs else end for end in ENDS}
        for name, columns in WEIGHTINGS.items():
            known = set(columns) <= set(lenses) and (len(lenses) > 0 or not columns)
            if known and (not columns or lenses[list(columns)].notna().all(axis=None)):
                self.weightings[name] = fit_scaler(self.runs[self.whole[ENDS[1]]], columns) if columns else None
        bricks = np.unique(scored["brickname"].astype(str))
        generator = streams.make_stream(config.seed, "audit/ladder/bootstrap")
        times = np.concatenate(list(stats.draw_multiplicities(bricks, config.ladder.n_bootstrap, generator)))
        self.results, of_brick = {}, pd.Series(np.arange(len(bricks)), bricks)
        for run, part in self.runs.items():
            own = times[:, of_brick.loc[part["brickname"].astype(str)].to_numpy()]
            for name, scaler in self.weightings.items():
                weight = weigh_set(part, name, lenses, scaler)
                n_eff = stats.kish_n_eff(weight, part["host_index"].to_numpy())
                bottom = np.maximum(own @ weight, 1e-9)
                for point, threshold in self.thresholds.items():
                    found = weight * (part["logit"].to_numpy() > threshold)
                    value = found.sum() / weight.sum() if n_eff >= config.ladder.min_n_eff else np.nan
                    self.results[run, name, point] = (value, (own @ found) / bottom, n_eff, len(part))

    def measure(self, run, weighting, point):
        """Return completeness, lower, upper, n_eff and n of one set."""
        value, draws, n_eff, n = self.results[run, weighting, point]
        lower, upper = stats.summarise_draws(draws) if np.isfinite(value) else (np.nan, np.nan)
        return {"completeness": value, "lower": lower, "upper": upper, "n_eff": n_eff, "n": n}

    def subtract(self, first, second, prefix):
        """Return the difference of two keys (run, weighting, point), first minus second, with its paired interval.

        Where no injection is found in one set only, no resample has a difference: the interval is then +-3 / n_eff (the
        rule of three), unless the sets are the same altogether.
        """
        if first not in self.results or second not in self.results:
            return {prefix: np.nan, f"{prefix}_lower": np.nan, f"{prefix}_upper": np.nan}
        (a, draws_a, n_a, _), (b, draws_b, n_b, _) = self.results[first], self.results[second]
        lower, upper = stats.summarise_draws(draws_a - draws_b) if np.isfinite(a - b) else (np.nan, np.nan)
        logits = [self.runs[key[0]]["logit"] for key in (first, second)]
        if np.isfinite(a - b) and not (draws_a != draws_b).any() and not logits[0].equals(logits[1]):
            lower, upper = a - b - 3.0 / min(n_a, n_b), a - b + 3.0 / min(n_a, n_b)
        return {prefix: a - b, f"{prefix}_lower": lower, f"{prefix}_upper": upper}


def read_retrained(profile, name="ladder_retrained"):
    """Return what ``benchmarks/ladder_retrained.py`` stored of a profile: rungs, or ``ladder_trainings`` one by one."""
    path = find_root() / "benchmarks" / "results" / f"{name}.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["profile"])
    own = table[table["profile"] == profile].drop(columns=["profile", "manifest"], errors="ignore")
    return own.reset_index(drop=True) if len(own) else None


def tabulate_ladder(scored, lenses, thresholds, config, retrained=None):
    """Return the ladder as one tidy table.

    Parameters
    ----------
    scored, lenses, thresholds, config
        See `Sets`.
    retrained : pandas.DataFrame, optional
        From `read_retrained`.

    Returns
    -------
    pandas.DataFrame
        kind: end, cumulative, observed (completeness, lower, upper); published (the pair that is asked about, as the
        benchmark card quotes it); path, added, analysis, retrained (first_in and last_out with _lower and _upper, and
        the completeness of the changed set at either end). rung, label, weighting, threshold_name, n, n_eff, status
        ("run", "not run", "too few", "published"). Intervals are 95 per cent, bricks resampled, differences paired;
        Wilson for the observed recall.
    """
    sets, rows = Sets(scored, lenses, thresholds, config), []
    for weighting in sets.weightings:
        for point in sets.thresholds:
            own = [*_list_levels(sets, weighting, point), *_list_steps(sets, weighting, point)]
            rows += [{"weighting": weighting, "threshold_name": point} | row for row in own]
    rows += _list_analysis(sets)
    own = () if retrained is None else tuple(retrained["rung"].unique())
    rows += [{"kind": "retrained", "rung": name, "label": label, "status": "not run"}
             for name, label in RETRAINED.items() if name not in own]  # fmt: skip
    if not {"bank/first", "bank/last"} & set(sets.runs):
        rows.append({"kind": "added", "rung": "bank", "label": f"{ADDED['bank'][0]} (no bank given)",
                     "status": "not run"})  # fmt: skip
    rows += [{"kind": "published", "rung": PAIR[statistic], "label": reference, "threshold_name": point,
              "completeness": value, "status": "published"}
             for statistic, point, reference, value, *_ in PUBLISHED if reference == BALAJI and statistic in PAIR
             ]  # fmt: skip
    table = pd.DataFrame(rows)
    if retrained is not None and len(retrained):
        extra = retrained.assign(kind="retrained", label=retrained["rung"].map(RETRAINED), status="run")
        table = pd.concat([table, extra], ignore_index=True)
    return table


def _list_levels(sets, weighting, point):
    """Return the rows of both ends, the cumulative steps and the observed recall."""
    threshold = sets.thresholds[point]
    rows = [{"kind": "end", "rung": end, "label": end} | sets.measure(sets.whole[end], weighting, point)
            for end in ENDS]  # fmt: skip
    for name in PATH:
        if f"{name}/cumulative" in sets.runs:
            rows.append({"kind": "cumulative", "rung": name, "label": PATH[name]}
                        | sets.measure(f"{name}/cumulative", weighting, point))  # fmt: skip
    found, n = int((sets.lenses["logit"] > threshold).sum()), len(sets.lenses)
    if n:
        lower, upper = stats.wilson_interval(found, n)
        rows.append({"kind": "observed", "rung": "recall", "label": "recall of held-out lenses",
                     "completeness": found / n, "lower": lower, "upper": upper, "n": n, "n_eff": n})  # fmt: skip
    return [row | {"status": _judge(row["completeness"])} for row in rows]


def _judge(*values):
    return "run" if np.isfinite(values).any() else "too few"


def _list_steps(sets, weighting, point):
    """Return the rows of first-in and last-out differences."""
    rows, where = [], (weighting, point)
    for kind, names in (("path", PATH), ("added", ADDED)):
        for name in names:
            first, last = f"{name}/first", f"{name}/last"
            if first not in sets.runs and last not in sets.runs:
                continue
            label = names[name] if kind == "path" else names[name][0]
            pair = ((ENDS[1], *where), (last, *where))
            row = {"kind": kind, "rung": name, "label": label}
            row |= sets.subtract((first, *where), (ENDS[0], *where), "first_in")
            row |= sets.subtract(*(pair if kind == "path" else pair[::-1]), "last_out")
            for run, column in ((first, "first"), (last, "last")):
                if run in sets.runs:
                    row[f"completeness_{column}"], _, row[f"n_eff_{column}"], row["n"] = sets.results[run, *where]
            rows.append(row | {"status": _judge(row["first_in"], row["last_out"])})
    return rows


def _list_analysis(sets):
    """Return what weighting and threshold alone change at either end."""
    rows, points = [], list(sets.thresholds)

    def compare(rung, label, old, new):
        row = {"kind": "analysis", "rung": rung, "label": label, "weighting": new[0], "threshold_name": new[1]}
        for end, prefix in zip(ENDS, ("first_in", "last_out"), strict=True):
            row |= sets.subtract((sets.whole[end], *new), (sets.whole[end], *old), prefix)
        rows.append(row | {"status": _judge(row["first_in"], row["last_out"])})

    for weighting in [name for name in sets.weightings if name != "flat"]:
        for point in points:
            compare(f"weighting_{weighting}", f"weighting: flat to {weighting}", ("flat", point), (weighting, point))
    for weighting in sets.weightings:
        for point in points[1:]:
            compare(f"threshold_{point}", f"threshold: {points[0]} to {point}", (weighting, points[0]),
                    (weighting, point))  # fmt: skip
    return rows
