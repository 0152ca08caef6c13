"""Population closure: how many lenses of the blank bricks are found, against completeness times rate (SPEC 8.7).

Blank bricks hold no known lens, so that their lenses are the population itself and no catalogue's choice. Three
comparisons: the rate against the lenses that are there, the completeness summed over them against those found, and the
product of both against those found.
"""

import numpy as np
import pandas as pd
from scipy import stats as distributions

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.catalogs.sampling import flag_cuts
from lensaudit.injection.population import load_prior
from lensaudit.rng import make_stream

BRICK_AREA = 0.0625  # deg^2, a box of 0.25 degrees
MIN_THETA = 0.5  # arcsec; the simulated sky makes no lens below, so that the rate is taken from there on
AREA_CUTS = ("maskbits", "nobs")  # cuts on positions; the others are on galaxies
N_DRAWS = 20_000
N_RATE = 20_000  # parents behind the rate, which is then known to 4 per cent
POWER = 0.8  # chance to notice, at which a factor counts as noticed
COLUMNS = ("point", "comparison", "observed", "observed_lower", "observed_upper", "expected", "expected_lower",
           "expected_upper", "predicted_lower", "predicted_upper", "agrees", "factor_up", "factor_down",
           "n_unsupported", "share_missing", "n_trained", "area")  # fmt: skip


def score_blank(truth, quarters, parent, pixels, detector, trained, config):
    """Find the lenses of the blank bricks that the product speaks of, and score their stamps.

    Parameters
    ----------
    truth : pandas.DataFrame or None
        Truth table of lenses; None on real data, where nothing is done.
    quarters : pandas.DataFrame
        Truth table of conditions, with brickid and is_blank.
    parent : pandas.DataFrame
        Survey table of all objects, from `sweeps.read_sweeps`.
    pixels : pixel source
        ``read(galaxies) -> (images, reasons)``.
    detector : object
        With ``score(images, ids)``.
    trained : collection of str
        galaxy_id of the galaxies the detector was trained on: lenses among them are left out of both sides.
    config : lensaudit.config.Config

    Returns
    -------
    dict or None
        lenses (galaxy_id, theta_E, psfsize_r, depth_r, logit), footprint (seeing, depth, weight [deg^2 that an object
        of the blank bricks stands for]), kept (share of the blank bricks' lenses not trained on), n_trained.

    Notes
    -----
    The area is that of the blank bricks times the share of their galaxies, brick by brick, that pass the cuts on
    masks and exposures. Of the parent sample's cuts on galaxies that on TYPE is left out on both sides: the rate
    knows no types.
    """
    if truth is None:
        return None
    blank = quarters.loc[quarters["is_blank"], "brickid"].unique()
    own = parent[parent["brickid"].isin(blank) & (parent["type"] != "PSF")].reset_index(drop=True)
    if own.empty:
        raise UserError("population closure: no object in a blank brick; raise [sky] blank_fraction or n_bricks")
    flags = flag_cuts(own, pd.DataFrame({"ra": [0.0], "dec": [-90.0]}), config.sampling).drop(
        columns=["type", "known_lens"])  # fmt: skip
    depth = photometry.ivar_to_depth(np.maximum(own["psfdepth_r"].to_numpy(dtype=float), 1e-9))
    share = 1.0 / own.groupby("brickid")["brickid"].transform("size")
    usable = flags[list(AREA_CUTS)].all(axis=1)
    footprint = pd.DataFrame({"seeing": own["psfsize_r"], "depth": depth, "weight": BRICK_AREA * share * usable})
    columns = ["galaxy_id", "theta_E", "mu", "snr_true", "n_images"]
    inside = own[["galaxy_id", "psfsize_r"]].assign(depth_r=depth, usable=flags.all(axis=1))
    lenses = inside.merge(truth[columns], on="galaxy_id", validate="one_to_one")
    lenses = lenses[lenses["usable"] & (lenses["theta_E"] >= MIN_THETA)]
    is_trained = lenses["galaxy_id"].isin(trained)
    cuts = config.injection
    lenses = lenses[~is_trained & (lenses["mu"] > cuts.min_mu) & (lenses["snr_true"] > cuts.min_arc_snr_true)
                    & (lenses["n_images"] > 1)].reset_index(drop=True)  # fmt: skip
    images, reasons = pixels.read(lenses)
    if any(reasons):
        raise UserError(f"population closure: {next(r for r in reasons if r)}; the truth and the pixels differ")
    logit = np.asarray(detector.score(images, list(lenses["galaxy_id"])), dtype=float) if len(lenses) else np.zeros(0)
    return {"lenses": lenses.assign(logit=logit), "footprint": footprint, "n_trained": int(is_trained.sum()),
            "kept": float(1.0 - is_trained.mean()) if len(is_trained) else 1.0}  # fmt: skip


def close_population(selection, make_rate, blank, thresholds, config):
    """Compare the lenses found in blank bricks with completeness times rate.

    Parameters
    ----------
    selection : lensaudit.selection.SelectionFunction
    make_rate : callable
        `lensaudit.selection.make_rate`.
    blank : dict or None
        From `score_blank`.
    thresholds : dict of name -> float
        On the logit.
    config : lensaudit.config.Config

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`, one row per operating point and comparison ("rate": of the lenses that are there; "C": of the found,
        completeness summed over the lenses that are there; "C x rate": of the found). observed has its 95 % Poisson
        interval; expected that of completeness and rate; predicted_lower and predicted_upper hold 95 % of the numbers
        to be expected with that uncertainty, and agrees says whether observed is one of them. factor_up and
        factor_down: the smallest factors between truth and expectation that would be noticed with a chance of 0.8 (NaN
        where none would). Only lenses and rate inside the product's support count; empty on real data.

    Notes
    -----
    A lens that is there is found with its own probability, so that "C" has the scatter of such trials (Poisson's is
    its upper bound); the others have Poisson's.
    """
    if blank is None:
        return pd.DataFrame(columns=COLUMNS)
    prior = load_prior(config.injection.prior)
    floor = [max(MIN_THETA, prior["deflector"]["theta_E"][0]), prior["deflector"]["theta_E"][1]]
    rate = make_rate(selection, prior | {"deflector": prior["deflector"] | {"theta_E": floor}}, n=N_RATE)
    lenses, footprint, generator = blank["lenses"], blank["footprint"], make_stream(config.seed, "audit/population")
    area = float(footprint["weight"].sum())
    rows = []
    for point, cut in thresholds.items():
        where = (lenses["theta_E"], lenses["psfsize_r"], lenses["depth_r"])
        found = selection.query(*where, threshold=point)
        support = found["in_support"].to_numpy(dtype=bool)
        n_found = int((lenses["logit"].to_numpy()[support] > cut).sum())
        counts = selection.expected_counts(rate, footprint, threshold=point, max_missing=1.0)
        scale, missing = area * blank["kept"], counts.attrs["share_missing"]
        there = counts["rate"].sum() * (1.0 - missing) * scale
        spread = _error_of(rate) * there
        p = selection.draw(*where, threshold=point)[:, support]
        p = p - p.mean(axis=0) + found["p"].to_numpy()[support]
        product = np.array([counts.attrs[k] for k in ("total", "total_lower", "total_upper")]) * scale
        plans = (
            ("rate", int(support.sum()), _draw_normal(generator, there, spread), None),
            ("C", n_found, p.sum(axis=1), np.clip(p, 0.0, 1.0)),
            ("C x rate", n_found, _draw_normal(generator, product[0], (product[2] - product[1]) / 3.92), None),
        )
        for name, observed, drawn, trials in plans:
            rows.append({"point": point, "comparison": name, "n_unsupported": int((~support).sum()), "area": area,
                         "share_missing": missing, "n_trained": blank["n_trained"]}
                        | _compare(observed, drawn, trials, generator))  # fmt: skip
    return pd.DataFrame(rows)[list(COLUMNS)]


def _error_of(rate):
    """Return the relative error of the whole rate from the number of lenses drawn for it."""
    drawn = (rate["rate"] / np.where(rate["sigma"] > 0, rate["sigma"], np.inf)) ** 2  # lenses behind each cell
    n_columns = max(len(rate.drop_duplicates(["seeing", "depth"])), 1)
    return 1.0 / np.sqrt(max(drawn.sum() / n_columns, 1.0))


def _draw_normal(generator, mean, sigma):
    return np.maximum(generator.normal(mean, sigma, N_DRAWS), 0.0)


def _compare(observed, drawn, trials, generator):
    """Compare a count with draws of its expectation; `trials` are draws of each lens's own probability."""
    expected = float(drawn.mean())
    if trials is None:
        numbers = generator.poisson(generator.choice(drawn, N_DRAWS))
    else:
        chosen = trials[generator.integers(0, len(trials), N_DRAWS)]
        numbers = (generator.random(chosen.shape) < chosen).sum(axis=1)
    low, high = np.quantile(numbers, [0.025, 0.975], method="inverted_cdf")
    factors = np.geomspace(1.0, 100.0, 2001)
    up = distributions.poisson.sf(high, factors * expected) >= POWER
    down = distributions.poisson.cdf(low - 1, expected / factors) >= POWER
    return {
        "observed": observed, "observed_lower": distributions.chi2.ppf(0.025, 2 * observed) / 2 if observed else 0.0,
        "observed_upper": distributions.chi2.ppf(0.975, 2 * observed + 2) / 2, "expected": expected,
        "expected_lower": float(np.quantile(drawn, 0.025)), "expected_upper": float(np.quantile(drawn, 0.975)),
        "predicted_lower": float(low), "predicted_upper": float(high), "agrees": bool(low <= observed <= high),
        "factor_up": float(factors[up.argmax()]) if up.any() else np.nan,
        "factor_down": float(1.0 / factors[down.argmax()]) if down.any() else np.nan,
    }  # fmt: skip
