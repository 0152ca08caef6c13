"""Null and control sets: what an injection table becomes when one thing about it is taken away.

Each takes an injection table and returns one that `inject.inject` renders; ids are kept, so that pairs share their
noise. Both host populations on the same arcs are `hosts.swap_hosts`.
"""

import numpy as np
from scipy.spatial import cKDTree

from lensaudit import rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS
from lensaudit.injection.hosts import swap_hosts

ROTATABLE = ("phi", "source_phi", "phi3", "phi4")
HOST_NAMES = ("host_index", "galaxy_id", "brickname")


def remove_flux(table):
    """Return the table with sources of zero flux: `inject` returns the hosts' own bits."""
    mags = {f"{kind}_{b}": np.inf for kind in ("mag_source", "mag_lensed") for b in BANDS}
    given = {k: v for k, v in mags.items() if k in table or k.startswith("mag_source")}
    return table.assign(**given, **({"arc_snr_true": 0.0} if "arc_snr_true" in table else {}))


def remove_lens(table):
    """Return the table with unlensed sources of equal flux at the same place: the contaminant control."""
    brighter = 2.5 * np.log10(table["mu"].to_numpy())
    mags = {f"mag_source_{b}": table[f"mag_source_{b}"] - brighter for b in BANDS}
    flat = {k: 0.0 for k in ("a3", "a4", "subhalo_theta_E") if k in table}
    return table.assign(theta_E=0.0, gamma1=0.0, gamma2=0.0, **flat, **mags, mu=1.0, multiplicity=1)


def rotate_arcs(table, angle=np.pi / 2):
    """Return the table with lens and source turned about the host's centre.

    Parameters
    ----------
    table : pandas.DataFrame
    angle : float or array_like of shape (N,)
        Counter-clockwise [rad]. A multiple of pi/2 turns the noiseless arc's pixels without resampling.

    Notes
    -----
    The mass no longer lies along the light of its host: what a detector makes of the alignment shows.
    """
    angle = np.broadcast_to(np.asarray(angle, dtype=np.float64), (len(table),))
    cos, sin = np.cos(angle), np.sin(angle)
    turned = {k: table[k].to_numpy() + angle for k in ROTATABLE if k in table}
    for x, y in (("source_x", "source_y"), ("subhalo_x", "subhalo_y")):
        if x in table:
            a, b = table[x].to_numpy(), table[y].to_numpy()
            turned |= {x: cos * a - sin * b, y: sin * a + cos * b}
    a, b = table["gamma1"].to_numpy(), table["gamma2"].to_numpy()
    turned |= {"gamma1": np.cos(2 * angle) * a - np.sin(2 * angle) * b,
               "gamma2": np.sin(2 * angle) * a + np.cos(2 * angle) * b}  # fmt: skip
    return table.assign(**turned)


def shuffle_hosts(table, hosts, seed):
    """Return the table with its own hosts dealt out anew among arcs of like seeing and depth.

    Parameters
    ----------
    table, hosts : pandas.DataFrame
    seed : int

    Returns
    -------
    pandas.DataFrame
        The same arcs and the same hosts, paired otherwise (untied = True); a host that stood in several rows does
        again. No arc keeps its host unless its neighbours all have the same one.

    Notes
    -----
    Rows are ordered at random inside groups of 20 to 40 neighbours in psfsize_r / 0.08 and depth_r / 0.2, and each
    takes the host of the next; the ties of theta_E, redshift and angle to the host are broken, and nothing else.
    """
    own = hosts.drop_duplicates("host_index").set_index("host_index").loc[table["host_index"].to_numpy()]
    points = own[["psfsize_r", "depth_r"]].to_numpy() / np.array([0.08, 0.2])
    tree = cKDTree(points, leafsize=40)
    group, stack, n = np.zeros(len(table), dtype=int), [tree.tree] if len(table) else [], 0
    while stack:
        node = stack.pop()
        if node.split_dim == -1:
            group[node.indices], n = n, n + 1
        else:
            stack += [node.greater, node.lesser]
    order = rng.draw_uniforms(seed, "controls/shuffle", table["injection_id"].to_numpy(), 1)[:, 0]
    source = np.arange(len(table))
    for value in range(n):
        rows = np.flatnonzero(group == value)
        rows = rows[np.argsort(order[rows], kind="stable")]
        rows = rows[np.argsort(table["host_index"].to_numpy()[rows], kind="stable")]
        # Sorted by host, a shift by the largest host's count gives every arc another host where there is one.
        most = np.unique(table["host_index"].to_numpy()[rows], return_counts=True)[1].max()
        source[rows] = np.roll(rows, -most)
    names = [name for name in HOST_NAMES if name in table]
    return table.assign(**{name: table[name].to_numpy()[source] for name in names}, untied=True)


def suppress_inner(table):
    """Return the table with `inner_images` False: no light from inside the critical curve (an ablation).

    Notes
    -----
    The renderer leaves out brightness where sqrt(q u^2 + v^2 / q) < theta_E, u along the mass's major axis: inside the
    tangential critical curve, kappa = 1/2, which for an isothermal ellipsoid without shear is exactly this ellipse. mu,
    lensed magnitudes and arc_snr_true of the table are those of the whole arc until it is measured again.
    """
    return table.assign(inner_images=False)


def make_control(name, table, hosts, seed):
    """Return a named control set.

    Parameters
    ----------
    name : str
        zero_flux, unlensed, rotated, shuffled_hosts, no_inner_images, deployment_hosts or random_hosts.
    table, hosts : pandas.DataFrame
    seed : int

    Raises
    ------
    UserError
    """
    makers = {
        "zero_flux": lambda: remove_flux(table), "unlensed": lambda: remove_lens(table),
        "rotated": lambda: rotate_arcs(table), "shuffled_hosts": lambda: shuffle_hosts(table, hosts, seed),
        "no_inner_images": lambda: suppress_inner(table),
        "deployment_hosts": lambda: swap_hosts(table, hosts, seed, "deployment"),
        "random_hosts": lambda: swap_hosts(table, hosts, seed, "random"),
    }  # fmt: skip
    if name not in makers:
        raise UserError(f"control {name!r} unknown; known are {', '.join(makers)}")
    return makers[name]()
