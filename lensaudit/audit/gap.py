"""What stands between the headline's prediction and the recall: truths told to the model, one group after another.

The headline of closure knows a lens by what can be measured. Here a model of P(recovered), fitted to the closure set
alone, predicts the twins of the held-out lenses: first from the measured covariates of 8.7, then from more and more of
what only the simulated sky can tell. Twins and closure set come from the same engine, so that a step of the prediction
is due to the truths it adds, in the order given; a rest between the last prediction and the twins to what no column
holds, or the model does not learn where bright arcs are few; and a rest between twins and lenses to the engine. It
explains; it is no row of closure.
"""

import numpy as np
import pandas as pd
from scipy import stats as distributions
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.audit.recovery import COVARIATES, take_weights

# Group -> columns it adds. The measured S/N is replaced by the true one, everything else stays.
GROUPS = {
    "measured": COVARIATES,
    "true S/N": ("log_snr",),
    "source colours": ("source_g_r", "source_r_z"),
    "source and arc": ("log_R", "log_mu", "source_n", "n_clumps", "arc_surface_brightness"),
    "lens and host": ("q", "source_q", "offset", "z_lens", "z_source", "mag_r", "host_g_r", "host_shape"),
}
N_FOLDS = 4  # of hosts: one left out at a time, for the error of the prediction


def trace_gap(injections, twins, lenses, hosts, threshold, config):
    """Predict the twins from ever more of the truth.

    Parameters
    ----------
    injections, twins : pandas.DataFrame
        Scored closure set, and scored twins with lens_id.
    lenses : pandas.DataFrame
        The supported lenses of closure's headline, with galaxy_id and logit.
    hosts : pandas.DataFrame
        Host table.
    threshold : float
        On the logit.
    config : lensaudit.config.Config

    Returns
    -------
    pandas.DataFrame
        step (of `GROUPS`, then "twins" and "lenses"), predicted with lower, upper (95 %; of the steps from leaving out
        quarters of the hosts (Student's t), of the twins from resampled hosts, of the lenses Jeffreys), log_score of
        the model on hosts it was not fitted to, with the prior's weights [nat per injection], n_columns. Empty without
        lenses or twins.

    Notes
    -----
    Each lens counts once, whatever its number of twins. The first step takes the injections with the prior's weights;
    the others know the true S/N, on which alone the tilt of the closure set rests, and need none. Gradient boosting
    takes columns that are missing for arcs too faint to measure.
    """
    own = twins[twins["lens_id"].isin(lenses["galaxy_id"])]
    if own.empty:
        return pd.DataFrame(columns=["step", "predicted", "lower", "upper", "log_score", "n_columns"])
    x, query = _add_truths(injections, hosts), _add_truths(own, hosts)
    share = (1.0 / own.groupby("lens_id")["lens_id"].transform("size")).to_numpy()
    flag, rows, names = (injections["logit"] > threshold).to_numpy(), [], []
    base, reach = take_weights(injections), distributions.t.ppf(0.975, N_FOLDS - 1)
    for step, columns in GROUPS.items():
        names = [c for c in (*names, *columns) if c != "arc_snr" or step == "measured"]
        weight = base if step == "measured" else np.ones(len(injections))
        value, error, score = _predict(x[names], query[names], flag, weight, base, injections["host_index"], share)
        rows.append((step, value, max(value - reach * error, 0.0), min(value + reach * error, 1.0), score, len(names)))
    found = (own["logit"] > threshold).to_numpy(dtype=float) * share
    generator = streams.make_stream(config.seed, "audit/gap/bootstrap")
    drawn = [(times @ found) / (times @ share) for times in
             stats.draw_multiplicities(own["host_index"].to_numpy(), config.closure.n_bootstrap, generator)]
    rows.append(("twins", found.sum() / share.sum(), *np.quantile(np.concatenate(drawn), [0.025, 0.975]), np.nan, 0))
    k, n = int((lenses["logit"] > threshold).sum()), len(lenses)
    rows.append(("lenses", k / n, *stats.jeffreys_interval(k, n), np.nan, 0))
    return pd.DataFrame(rows, columns=["step", "predicted", "lower", "upper", "log_score", "n_columns"])


def _add_truths(table, hosts):
    """Return the table with the columns of `GROUPS`."""
    own = hosts.set_index("host_index").loc[table["host_index"].to_numpy()]
    return table.assign(
        log_snr=np.log(table["arc_snr_true"]), source_g_r=table["mag_source_g"] - table["mag_source_r"],
        source_r_z=table["mag_source_r"] - table["mag_source_z"], log_R=np.log(table["source_R"]),
        log_mu=np.log(table["mu"]), offset=np.hypot(table["source_x"], table["source_y"]) / table["theta_E"],
        host_g_r=(own["mag_g"] - own["mag_r"]).to_numpy(), host_shape=own["shape_r"].to_numpy(),
    )  # fmt: skip


def _predict(x, query, flag, weight, base, host, share):
    """Return the mean prediction, its jackknife error over quarters of the hosts, and the log score on the others."""
    means, score = [], 0.0
    for kept, left in GroupKFold(N_FOLDS).split(x, flag, host):
        model = _fit(x.iloc[kept], flag[kept], weight[kept])
        means.append(np.average(model.predict_proba(query)[:, 1], weights=share))
        p = np.clip(model.predict_proba(x.iloc[left])[:, 1], 1e-6, 1.0 - 1e-6)
        score += base[left] @ np.log(np.where(flag[left], p, 1.0 - p)) / base.sum()
    error = np.sqrt((N_FOLDS - 1) / N_FOLDS * np.sum((np.array(means) - np.mean(means)) ** 2))
    return float(np.mean(means)), float(error), float(score)


def _fit(x, flag, weight):
    """Fit the model; its settings were not tuned on twins."""
    model = HistGradientBoostingClassifier(max_iter=120, learning_rate=0.06, max_leaf_nodes=10, min_samples_leaf=40,
                                           early_stopping=False, random_state=0)  # fmt: skip
    return model.fit(x, flag, sample_weight=weight)
