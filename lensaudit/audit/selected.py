"""What the selected lenses look like, and what the parents looked like before selection.

One-dimensional selection in each parameter as Herle+ 2024 (MNRAS 534, 1093) show it, observed and corrected
distributions of found lenses, quads against doubles. `collect_curves` and `correct_catalogue` do it for a profile.
"""

import numpy as np
import pandas as pd
from scipy.stats import beta

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import tabulate_bins
from lensaudit.audit.sufficiency import check_thresholds
from lensaudit.audit.thresholds import choose_points
from lensaudit.audit.verdict import explain_weights

# Herle's axes by the names of this project.
VARIABLES = ("theta_E", "source_R", "source_n", "source_q", "q", "slope")
SOURCES = ("05_evaluation", "06_injection_realism")  # stages `collect_curves` reads
# What `correct_catalogue` needs of scored lenses, and the bins of each distribution.
CATALOGUE = ("galaxy_id", "theta_E", "z_lens", "type", "n_images", "psfsize_r", "depth_r", "logit")
BINS = {"theta_E": np.arange(0.5, 2.6, 0.25), "z_lens": np.linspace(0, 1, 6), "type": ["DEV", "SER", "REX", "EXP"]}
QUAD = 4  # images, the faint central one counted or not: doubles have 2 or 3
N_DRAWS = 2000
BOUNDS = {"lower_68": 0.16, "upper_68": 0.84, "lower": 0.025, "upper": 0.975}


def collect_curves(stage):
    """Return the curves and quantiles of a profile from its stored injections, at its two loosest operating points.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
        That may read `SOURCES`.

    Returns
    -------
    curves, quantiles : pandas.DataFrame
        From `trace_curves` and `measure_quantiles`, of the injections that are drawn as the prior has them.
    """
    limits = stage.read_json("05_evaluation", "thresholds.json")
    cuts = {name: limits[name]["threshold"] for name in choose_points(limits)[:2]}
    fair = stage.read_table("06_injection_realism", "closure_injections.parquet").query("not tilted")
    return trace_curves(fair, cuts), measure_quantiles(fair, cuts, stage.config)


def find_variables(injections, variables=VARIABLES):
    """Return those variables that injections have and that vary among them."""
    return [name for name in variables if name in injections and injections[name].nunique() > 1]


def trace_curves(injections, thresholds, n_bins=10, variables=VARIABLES):
    """Return the share recovered along each parameter, and how parents and selected are distributed along it.

    Parameters
    ----------
    injections : pandas.DataFrame
        Scored injections drawn from a prior (the closure set): logit, host_index, brickname and the variables.
    thresholds : dict of name -> float
        On the logit.
    n_bins : int
        Bins that hold equally many parents.
    variables : sequence of str
        Those that are missing or do not vary are left out, as the slope under a prior of isothermal lenses. Along one
        that the prior draws from a narrow range, as it may the Sersic index, the curve is flat for want of range.

    Returns
    -------
    pandas.DataFrame
        variable, left, right, x (mean of the parents in the bin), threshold_name, n, k, n_hosts, n_eff, completeness,
        lower, upper (95 %), reason, parents and selected (share of each in the bin, per unit of the variable).

    Raises
    ------
    UserError
        When no variable varies.
    """
    parts = []
    for name in find_variables(injections, variables):
        edges = np.unique(np.quantile(injections[name], np.linspace(0, 1, n_bins + 1)))
        edges[0] = np.nextafter(edges[0], -np.inf)  # bins are closed above; the smallest value lies in the first
        part = tabulate_bins(injections, {name: edges}, thresholds).drop(columns=name)
        bins = len(part) // (len(edges) - 1)
        mean = injections[name].groupby(pd.cut(injections[name], edges, labels=False)).mean()
        width = np.tile(np.diff(edges), bins)
        total = part.groupby("threshold_name")[["n", "k"]].transform("sum")
        with np.errstate(divide="ignore", invalid="ignore"):
            parents, selected = part["n"] / total["n"] / width, part["k"] / total["k"] / width
        parts.append(part.assign(variable=name, x=np.tile(mean.reindex(range(len(edges) - 1)), bins),
                                 left=np.tile(edges[:-1], bins), right=np.tile(edges[1:], bins), parents=parents,
                                 selected=selected))  # fmt: skip
    if not parts:
        raise UserError(f"injections: none of {', '.join(variables)} varies among them")
    return pd.concat(parts, ignore_index=True)


def measure_quantiles(injections, thresholds, config, shares=(0.9, 0.5, 0.1), variables=VARIABLES):
    """Return above which value a share of the selected lies: "50 % of the selected have theta_E >= ...".

    Parameters
    ----------
    injections, thresholds, variables
        As `trace_curves` takes them.
    config : lensaudit.config.Config
    shares : sequence of float in (0, 1)

    Returns
    -------
    pandas.DataFrame
        variable, sample ("parents" or the operating point), share, value, lower, upper (95 %, survey bricks resampled,
        so that injections of one host or brick stay together), shift (from the parents' value), shift_lower,
        shift_upper, n; reason says why a threshold outside the scores gives no value.

    Raises
    ------
    UserError
        For scores or thresholds that are not finite.
    """
    names = find_variables(injections, variables)
    flags = {"parents": np.ones(len(injections), dtype=bool)}
    checked = check_thresholds(injections, thresholds)
    reasons = {name: reason for name, (_, reason) in checked.items()}
    flags |= {name: (injections["logit"] > cut).to_numpy() & (not reason) for name, (cut, reason) in checked.items()}
    generator = streams.make_stream(config.seed, "audit/selected/quantiles")
    n_draws, rows = max(config.evaluation.n_bootstrap // 5, 1), []
    times = np.concatenate(list(stats.draw_multiplicities(injections["brickname"].to_numpy(), n_draws, generator)))
    for name in names:
        order = np.argsort(injections[name].to_numpy(), kind="stable")
        values = injections[name].to_numpy(dtype=float)[order]
        base = {}
        for sample, flag in flags.items():
            own = values[flag[order]]
            found = stats.weighted_quantile(own, 1 - np.asarray(shares))
            draws = _draw_quantiles(own, times[:, order][:, flag[order]], shares)
            base.setdefault("value", found), base.setdefault("draws", draws)
            lower, upper = stats.summarise_draws(draws)
            low, high = stats.summarise_draws(draws - base["draws"])
            rows += [{"variable": name, "sample": sample, "share": share, "value": found[i], "lower": lower[i],
                      "upper": upper[i], "shift": found[i] - base["value"][i], "shift_lower": low[i],
                      "shift_upper": high[i], "n": int(flag.sum()), "reason": reasons.get(sample, "")}
                     for i, share in enumerate(shares)]  # fmt: skip
    return pd.DataFrame(rows)


def _draw_quantiles(values, times, shares):
    """Return the quantile 1 - share of rising values under each row of multiplicities, shape (draws, shares)."""
    if not len(values):
        return np.full((len(times), len(shares)), np.nan)
    total = np.cumsum(times, axis=1, dtype=np.float64)
    out = np.empty((len(times), len(shares)))
    for i, share in enumerate(shares):
        index = np.sum(total < ((1 - share) * total[:, -1] - 1e-9)[:, None], axis=1)
        out[:, i] = np.where(total[:, -1] > 0, values[np.minimum(index, len(values) - 1)], np.nan)
    return out


def correct_distribution(found, column, bins, probability=None, truth=None, seed=0, correlated=False):
    """Return how found lenses are distributed, and how their parents were: each found lens counts 1/C times.

    Parameters
    ----------
    found : pandas.DataFrame
        Lenses the detector found; of a list it did not score, all entries.
    column : str
        Such as theta_E, z_lens, type.
    bins : sequence
        Rising edges, bins closed below; or the names of classes.
    probability : pandas.DataFrame, optional
        C of each row of `found`, in its order: p, n_eff, in_support, as `SelectionFunction.query` gives them. Without
        it, and so for any list this detector did not score, only what is observed is returned.
    truth : pandas.DataFrame, optional
        All lenses of the simulated sky's catalogue inside the support, with `column`.
    seed : int
    correlated : bool
        The errors of C move together, as for a fitted model; else rows of equal C and n_eff, which come from one cell,
        do, and others are independent.

    Returns
    -------
    pandas.DataFrame
        left, right or name; n_found. With `probability`: n_used (inside the support), corrected, lower_68, upper_68,
        lower, upper (95 %), max_weight (share of the largest weight in the sum of all), n_eff (Kish, of all),
        guard_ok (SPEC 8.3). With `truth`: n_true.

    Raises
    ------
    UserError
        For a missing column, or probabilities of other rows.

    Notes
    -----
    Weights are 1/C with C = (n_eff p + 1/2) / (n_eff + 1), the posterior mean. Bands hold C's Beta posterior and the
    counting error of the found, a Gamma posterior with (sum w)^2 / sum w^2 + 1/2 counts. A bin without a found lens has
    no weight to be corrected with, so that its upper bound is not known.
    """
    code, out = _bin_rows(found, column, bins)
    size = len(out)
    out["n_found"] = np.bincount(code[code >= 0], minlength=size)
    if truth is not None:
        true_code, _ = _bin_rows(truth, column, bins)
        out["n_true"] = np.bincount(true_code[true_code >= 0], minlength=size)
    if probability is None:
        return out
    if len(probability) != len(found):
        raise UserError(f"probability has {len(probability)} rows, the found lenses {len(found)}; give one for each")
    use = probability["in_support"].to_numpy(dtype=bool) & (code >= 0)
    p, n_eff = (probability[name].to_numpy(dtype=float)[use] for name in ("p", "n_eff"))
    code, a, b = code[use], n_eff * p + 0.5, n_eff * (1 - p) + 0.5
    generator = streams.make_stream(seed, "audit/selected/correct", column)
    weight = (a + b) / a
    draws = _draw_sums(code, weight, _draw_weights(a, b, correlated, generator), size, generator)
    quantiles = dict(zip(BOUNDS, np.quantile(draws, list(BOUNDS.values()), axis=0), strict=True))
    out["n_used"] = np.bincount(code, minlength=size)
    for name, values in quantiles.items():
        out[name] = np.where(out["n_used"] > 0, values, 0.0 if name.startswith("lower") else np.nan)
    largest, kish = (weight.max() / weight.sum() if len(weight) else np.nan), stats.kish_n_eff(weight)
    return out.assign(corrected=np.bincount(code, weights=weight, minlength=size), max_weight=largest, n_eff=kish,
                      guard_ok=not explain_weights(kish, largest))  # fmt: skip


def correct_catalogue(catalogue, product, seed, point=None, bins=BINS):
    """Return the distributions of scored lenses, found and corrected with a selection function, truth beside them.

    Parameters
    ----------
    catalogue : pandas.DataFrame
        `CATALOGUE`: scored lenses with their parameters (simulated sky: those of the truth table).
    product : lensaudit.selection.SelectionFunction
    seed : int
    point : str, optional
        Operating point of the product; its default otherwise.
    bins : dict of column -> sequence
        As `correct_distribution` takes them.

    Returns
    -------
    pandas.DataFrame
        variable and what `correct_distribution` gives, one distribution after the other; a lens is true here when the
        product supports it.
    """
    place = ("theta_E", "psfsize_r", "depth_r")
    probability = product.query(*(catalogue[c] for c in place), threshold=point)
    found = (catalogue["logit"] > product.description["thresholds"][probability.attrs["threshold"]]).to_numpy()
    support = probability["in_support"].to_numpy(dtype=bool)
    parts = [correct_distribution(catalogue[found], name, edges, probability[found], catalogue[support], seed)
             for name, edges in bins.items()]  # fmt: skip
    return pd.concat([part.assign(variable=name) for name, part in zip(bins, parts, strict=True)], ignore_index=True)


def _bin_rows(table, column, bins):
    if column not in table:
        raise UserError(f"lenses have no column {column}; they have {', '.join(sorted(map(str, table)))}")
    if isinstance(bins[0], str):
        return pd.Index(list(bins)).get_indexer(table[column].astype(str)), pd.DataFrame({"name": list(bins)})
    edges = np.asarray(bins, dtype=float)
    if len(edges) < 2 or not np.all(np.diff(edges) > 0):
        raise UserError(f"{column}: bin edges {edges.tolist()} do not rise; give two or more")
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    code = np.digitize(values, edges) - 1
    code = np.where(np.isfinite(values) & (code < len(edges) - 1), code, -1)
    return code, pd.DataFrame({"left": edges[:-1], "right": edges[1:]})


def _draw_weights(a, b, correlated, generator):
    """Return draws of 1/C, shape (N_DRAWS, lenses)."""
    if correlated:
        return 1.0 / np.maximum(beta.ppf(generator.uniform(size=(N_DRAWS, 1)), a, b), 1e-6)
    pairs, inverse = np.unique(np.stack([a, b], axis=1), axis=0, return_inverse=True)
    drawn = generator.beta(pairs[:, 0], pairs[:, 1], size=(N_DRAWS, len(pairs)))
    return 1.0 / np.maximum(drawn[:, inverse.reshape(-1)], 1e-6)


def _draw_sums(code, weight, drawn, size, generator):
    """Return draws of the sum of weights per bin, with the counting error of the found."""
    total, square = (np.bincount(code, weights=weight**k, minlength=size) for k in (1, 2))
    counts = np.divide(total**2, square, out=np.zeros(size), where=square > 0)
    member = (code[:, None] == np.arange(size)).astype(float)
    gamma = generator.gamma(counts + 0.5, size=(N_DRAWS, size))
    return (drawn @ member) * np.divide(gamma, counts, out=np.zeros_like(gamma), where=counts > 0)


def compare_images(samples):
    """Return the share of quads in several samples of lenses, such as all and found, on the sky and injected.

    Parameters
    ----------
    samples : dict of name -> pandas.DataFrame
        Each with n_images or multiplicity; with weight (such as 1/C) where rows do not count alike.

    Returns
    -------
    pandas.DataFrame
        sample, n, n_double, n_quad (weighted sums), quad_fraction, lower, upper (95 %, Jeffreys with Kish's size),
        quad_to_double (NaN without doubles).

    Notes
    -----
    Quads have 4 images or more; 3 and 5 are 2 and 4 with a faint central one that lies above a finder's floor.
    """
    rows = []
    for name, table in samples.items():
        column = next((c for c in ("n_images", "multiplicity") if c in table), None)
        if column is None:
            raise UserError(f"{name}: lenses have no column n_images or multiplicity")
        weight = table["weight"].to_numpy(dtype=float) if "weight" in table else np.ones(len(table))
        multiple = (table[column] >= 2).to_numpy()
        quad = (table[column] >= QUAD).to_numpy()
        n_quad, n_double = weight[quad].sum(), weight[multiple & ~quad].sum()
        size, total = stats.kish_n_eff(weight[multiple]), n_quad + n_double
        share = n_quad / total if total > 0 else np.nan
        lower, upper = stats.jeffreys_interval(size * np.nan_to_num(share), size)
        rows.append({"sample": name, "n": int(multiple.sum()), "n_double": n_double, "n_quad": n_quad,
                     "quad_fraction": share, "lower": lower, "upper": upper,
                     "quad_to_double": n_quad / n_double if n_double > 0 else np.nan})  # fmt: skip
    return pd.DataFrame(rows)
