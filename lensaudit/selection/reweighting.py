"""Cells under another prior, from the stored injections, with the guards that refuse too few or too unequal weights.

A prior changes how often the arcs of a cell have which source, redshift and size; it does not change the arcs that
exist. So the numbers are always those of arcs that pass the product's own cuts, in the product's own hosts.
"""

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit import stats
from lensaudit.artifacts import UserError, hash_object
from lensaudit.audit.completeness import AXES, assign_cells
from lensaudit.audit.verdict import explain_weights
from lensaudit.injection.density import weigh_prior
from lensaudit.injection.population import load_prior

STRUCTURE = ("slope", "multipoles", "subhalo_fraction")  # of the mass: not in the stored densities


def read_prior(prior):
    """Return a prior by its name among the frozen ones, from the path of a TOML file, or as the dict it is.

    Raises
    ------
    UserError
        When it is not found, not TOML, lacks a section, or differs from the product's injections in more than weights:
        other hosts, another way of making images, other mass models.
    """
    if isinstance(prior, dict) or not str(prior).endswith(".toml"):
        loaded = load_prior(prior if isinstance(prior, dict) else str(prior))
    else:
        try:
            loaded = tomllib.loads(Path(prior).read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"prior {Path(prior).name}: no such file") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UserError(f"prior {Path(prior).name}: not valid TOML ({error})") from None
    if "hash" not in loaded:
        loaded = loaded | {"hash": hash_object(loaded)}
    name = loaded.get("name", prior)
    missing = [part for part in ("cosmology", "deflector", "source") if part not in loaded]
    if missing:
        raise UserError(f"prior {name}: section [{missing[0]}] is missing; see data_manifests/priors/collett.toml")
    beyond = [k for k in STRUCTURE if k in loaded["deflector"]] + [k for k in ("light", "grid") if k in loaded]
    beyond += ["hosts"] if loaded["deflector"].get("hosts") else []
    if beyond:
        raise UserError(f"prior {name}: {', '.join(beyond)} cannot be reached by weights; run its own injections")
    return loaded


def weigh_cells(injections, axes, threshold, prior, rho, min_bricks=3):
    """Return completeness in cells under another prior.

    Parameters
    ----------
    injections : pandas.DataFrame
        Of the product.
    axes : dict of axis -> centres
    threshold : float
        On the logit.
    prior : dict
        From `read_prior`.
    rho : (float, float)
        Pair correlations of the recovered flag inside a host and inside a brick.
    min_bricks : int

    Returns
    -------
    pandas.DataFrame
        Row-major: p, lower and upper at 68 and 95 %, n_eff, kish (host-clustered), max_weight (share of the sum),
        untied_fraction (by weight; injections without population weight are left out), sufficient, reason.

    Notes
    -----
    n_eff = W^2 / (S + rho_h (H - S) + rho_b (B - H)), with W the sum of the weights, S, H, B the sums of their squares
    over rows, host totals and brick totals: that of SPEC 8.2 for equal weights, Kish's for independent rows.
    """
    weight = weigh_rows(injections, prior)
    number = assign_cells(injections, axes)
    use = (number >= 0) & (weight > 0)
    own, number, weight = injections[use], number[use], weight[use]
    n_cells = int(np.prod([len(axes[axis]) for axis in AXES]))

    def add_up(values):
        return np.bincount(number, weights=values, minlength=n_cells)

    total, rows = add_up(weight), add_up(weight**2)
    found = add_up(weight * (own["logit"].to_numpy(dtype=float) > threshold))
    hosts, _ = _sum_groups(own["host_index"], number, weight, n_cells)
    bricks, n_bricks = _sum_groups(own["brickname"], number, weight, n_cells)
    largest = pd.Series(weight).groupby(number).max().reindex(range(n_cells), fill_value=0.0).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        out = pd.DataFrame({
            "p": found / total, "kish": np.nan_to_num(total**2 / hosts), "max_weight": np.nan_to_num(largest / total),
            "n_eff": np.nan_to_num(total**2 / (rows + rho[0] * (hosts - rows) + rho[1] * (bricks - hosts))),
            "untied_fraction": add_up(weight * own["untied"].to_numpy(dtype=float)) / total,
        })  # fmt: skip
    k_eff = out["n_eff"] * out["p"].fillna(0.0)
    for level, name in ((0.68, "68"), (0.95, "95")):
        out[f"lower_{name}"], out[f"upper_{name}"] = stats.jeffreys_interval(k_eff, out["n_eff"], level)
    name = prior.get("name", "given")
    out["reason"] = [_judge(row, bricks, name, min_bricks)
                     for row, bricks in zip(out.itertuples(), n_bricks, strict=True)]
    return out.assign(sufficient=out["reason"] == "", alpha=k_eff + 0.5, beta=out["n_eff"] - k_eff + 0.5)


def weigh_rows(injections, prior):
    """Return the weights of rows; those without population weight (untied hosts) get none."""
    try:
        weight, _ = weigh_prior(injections, prior)
    except KeyError as error:
        raise UserError(f"prior {prior.get('name', 'given')}: {error} is missing; see "
                        "data_manifests/priors/collett.toml") from None  # fmt: skip
    return weight * injections["weight"].to_numpy(dtype=float)


def _sum_groups(groups, number, weight, n_cells):
    """Return per cell the sum of the squared totals of groups, and how many groups there are."""
    code = stats.encode_groups(groups)
    pair, inverse = np.unique(number * (code.max(initial=0) + 1) + code, return_inverse=True)
    cell = pair // (code.max(initial=0) + 1)
    total = np.bincount(inverse, weights=weight, minlength=len(pair))
    return np.bincount(cell, weights=total**2, minlength=n_cells), np.bincount(cell, minlength=n_cells)


def _judge(row, n_bricks, name, min_bricks):
    few = f"hosts from fewer than {min_bricks} bricks" if n_bricks < min_bricks else ""
    reason = explain_weights(row.kish, row.max_weight) or few
    return f"prior {name}: {reason}" if reason else ""
