"""Injections in lenstronomy's words, both ways: a table's row and dictionaries of keyword arguments."""

import numpy as np
import pandas as pd
from lenstronomy.LensModel.Profiles.sersic_utils import SersicUtil
from lenstronomy.Util.param_util import ellipticity2phi_q, phi_q2_ellipticity
from scipy.ndimage import map_coordinates
from scipy.special import gamma

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.injection.checks import MAX_CLUMPS, check_table
from lensaudit.injection.light import band_fluxes, host_rows, moffat_radii
from lensaudit.lensing.psf import narrow_core, wing_flux, wing_profile
from lensaudit.lensing.sources import place_clumps, sersic_b

DEFAULTS = {
    "slope": 2.0, "a3": 0.0, "phi3": 0.0, "a4": 0.0, "phi4": 0.0, "subhalo_theta_E": 0.0, "subhalo_x": 0.0,
    "subhalo_y": 0.0, "subhalo_r_cut": 1.0, "gradient": 0.0,
}  # fmt: skip
UPSAMPLING = 8  # of a bank's image for INTERPOL: linear interpolation is then within 1e-3 of the cubic's peak
CORE = 1e-8  # arcsec; lenstronomy's cores of the truncated isothermal sphere and of the Sersic profile


def to_lens_kwargs(row):
    """Return lenstronomy's keyword arguments of the smooth mass of a row, for ``["SIE", "SHEAR"]``."""
    e1, e2 = phi_q2_ellipticity(row["phi"], row["q"])
    return [{"theta_E": row["theta_E"], "e1": e1, "e2": e2, "center_x": 0.0, "center_y": 0.0},
            {"gamma1": row["gamma1"], "gamma2": row["gamma2"], "ra_0": 0.0, "dec_0": 0.0}]  # fmt: skip


def to_light_kwargs(flux, x, y, R, n, q, phi):
    """Return lenstronomy's keyword arguments of a Sersic profile of total flux, for ``SERSIC_ELLIPSE``.

    Notes
    -----
    lenstronomy approximates b_n, so its R_sersic is not quite the half-light radius; R is rescaled to describe the same
    profile, and the amplitude [flux / arcsec^2] is that at R_sersic.
    """
    approximate, exact = SersicUtil().b_n(n), sersic_b(n)
    central = flux * exact ** (2 * n) / (2 * np.pi * n * R**2 * gamma(2 * n))
    e1, e2 = phi_q2_ellipticity(phi, q)
    return {"amp": central * np.exp(-approximate), "R_sersic": R * (approximate / exact) ** n, "n_sersic": n, "e1": e1,
            "e2": e2, "center_x": x, "center_y": y}  # fmt: skip


def to_mass_model(row):
    """Return lenstronomy's lens_model_list and kwargs_lens of a row; what is zero is left out, but for the shear.

    Parameters
    ----------
    row : pandas.Series or dict
        theta_E [arcsec], q, phi [rad], gamma1, gamma2, and optionally the columns of `DEFAULTS`.
    """
    v = DEFAULTS | {k: row[k] for k in DEFAULTS if k in row}
    main, shear = to_lens_kwargs(row)
    names = ["SIE" if v["slope"] == 2.0 else "EPL", "SHEAR"]
    kwargs = [main if v["slope"] == 2.0 else main | {"gamma": v["slope"]}, shear]
    for m in (3, 4):
        if v[f"a{m}"]:
            names.append("MULTIPOLE")
            kwargs.append({"m": m, "a_m": v[f"a{m}"], "phi_m": v[f"phi{m}"], "center_x": 0.0, "center_y": 0.0})
    if v["subhalo_theta_E"]:
        cut = v["subhalo_r_cut"]
        names.append("PJAFFE")
        kwargs.append({"sigma0": v["subhalo_theta_E"] * (cut - CORE) / (2.0 * CORE * cut), "Ra": CORE, "Rs": cut,
                       "center_x": v["subhalo_x"], "center_y": v["subhalo_y"]})  # fmt: skip
    return names, kwargs


def source_kwargs(row, seed):
    """Return lenstronomy's keyword arguments of a row's disc (SERSIC_ELLIPSE) and of its clumps (GAUSSIAN).

    Parameters
    ----------
    row : pandas.DataFrame
        One row of an injection table.
    seed : int
        Of the injections: it places the clumps.

    Returns
    -------
    (list of dict, list of dict)
        Each group of unit flux; the second is empty for a smooth source.
    """
    shape = [row[c].to_numpy(dtype=np.float64) for c in ("source_R", "source_q", "source_phi")]
    x, y, n = (float(row[c].iloc[0]) for c in ("source_x", "source_y", "source_n"))
    disc = to_light_kwargs(1.0, x, y, shape[0][0], n, shape[1][0], shape[2][0])
    if not row["n_clumps"].iloc[0]:
        return [disc], []
    u = rng.draw_uniforms(seed, "injection/clumps", row["injection_id"].to_numpy(), 4 * MAX_CLUMPS)
    clumps = {k: v[0] for k, v in place_clumps(u, *shape, row["n_clumps"].to_numpy(), MAX_CLUMPS).items()}
    sigma = clumps["R"] / np.sqrt(2.0 * np.log(2.0))
    return [disc], [{"amp": clumps["share"][k], "sigma": sigma[k], "center_x": x + clumps["dx"][k],
                     "center_y": y + clumps["dy"][k]} for k in np.flatnonzero(clumps["share"])]  # fmt: skip


def bank_kwargs(row, bank):
    """Return lenstronomy's keyword arguments of a galaxy of the bank, for ``INTERPOL``, of unit flux.

    Parameters
    ----------
    row : pandas.Series
        bank_index, source_x, source_y, source_R [arcsec], source_phi [rad], injection_id.
    bank : lensaudit.lensing.sources.ImageBank
        Or what holds one as ``images``.

    Notes
    -----
    INTERPOL takes surface brightness [flux / arcsec^2] and interpolates linearly, the bank by cubic B-splines: the
    image is the bank's, read `UPSAMPLING` times per pixel.
    """
    bank, index = getattr(bank, "images", bank), int(row["bank_index"])
    if bank is None or not 0 <= index < len(bank.half_light):
        size = 0 if bank is None else len(bank.half_light)
        raise UserError(
            f"injection {row['injection_id']}: bank_index = {index}, but the bank holds {size}; give its bank"
        )
    coefficients, step = bank.coefficients[index].astype(np.float64), 1.0 / UPSAMPLING
    places = np.arange(0.0, len(coefficients) - 1.0 + 0.5 * step, step)
    image = map_coordinates(coefficients, np.meshgrid(places, places, indexing="ij"), order=3, prefilter=False,
                            mode="constant")  # fmt: skip
    pixel = row["source_R"] / bank.half_light[index]  # arcsec
    middle = 0.5 * (len(coefficients) - 1.0) - bank.centre[index]
    cos, sin = np.cos(row["source_phi"]), np.sin(row["source_phi"])
    return {"image": image / image.sum() / (pixel * step) ** 2, "amp": 1.0, "scale": pixel * step,
            "phi_G": row["source_phi"], "center_x": row["source_x"] + pixel * (cos * middle[0] - sin * middle[1]),
            "center_y": row["source_y"] + pixel * (sin * middle[0] + cos * middle[1])}  # fmt: skip


def describe_row(row, host, seed, psf_mode="moffat", bank=None):
    """Return all of a row in lenstronomy's words; see `to_lenstronomy`, which also refuses what has no words there."""
    row = row.reset_index(drop=True)
    own, values = host_rows(row, host), row.iloc[0]
    names, kwargs_lens = to_mass_model(values)
    groups, point = _describe_source(row, own, seed, bank)
    alpha, beta = moffat_radii(row, own, BANDS, psf_mode)
    wings = bool(values.get("psf_wings", False)) and psf_mode == "moffat"
    if wings:
        alpha = narrow_core(alpha, beta, BANDS)
    amplitude = 0.0 if "bank_index" in groups["disc"] else float(values.get("gradient", 0.0))
    shape = {"e1": float(values.get("psf_e1", 0.0)), "e2": float(values.get("psf_e2", 0.0)), "wings": wings}
    shown = bool(values.get("inner_images", True))
    return {
        "inner": None if shown else tuple(float(values[k]) for k in ("theta_E", "q", "phi")),
        "injection_id": int(values["injection_id"]), "seed": int(seed), "host_index": int(values["host_index"]),
        "lens_model_list": names, "kwargs_lens": kwargs_lens, "groups": groups, "point": point,
        "gradient": (amplitude, *(float(values[f"source_{c}"]) for c in ("R", "phi"))),
        "psf": {b: {"alpha": float(alpha[0, k] * PIXEL_SCALE), "beta": float(beta[0])} | shape
                for k, b in enumerate(BANDS)},
    }  # fmt: skip


def _describe_source(row, own, seed, bank):
    """Return the colour groups and the point source (None without) of one row."""
    values = row.iloc[0]
    discs, knots = (dict(zip(BANDS, f[0].tolist(), strict=True)) for f in band_fluxes(row, own))
    disc, clumps = source_kwargs(row, seed)
    groups = {"disc": _make_group(["SERSIC_ELLIPSE"], disc, discs)}
    if values.get("source_mode", "bank") == "bank" and values.get("bank_index", -1) >= 0:
        groups["disc"] = _make_group(["INTERPOL"], [bank_kwargs(values, bank)], discs)
        groups["disc"]["bank_index"] = int(values["bank_index"])
    if clumps:
        groups["clumps"] = _make_group(["GAUSSIAN"] * len(clumps), clumps, knots)
    share = {b: float(values.get(f"quasar_fraction_{b}", 0.0)) for b in BANDS}
    if not any(share.values()):
        return groups, None
    place = {"ra_source": float(values["source_x"]), "dec_source": float(values["source_y"]), "source_amp": 1.0}
    point = {"point_source_type_list": ["SOURCE_POSITION"], "kwargs_ps": [place], "flux": {}}
    for band in BANDS:
        total = float(photometry.mag_to_flux(values[f"mag_source_{band}"]) * own[f"mw_transmission_{band}"].iloc[0])
        point["flux"][band] = share[band] * total
        extended = sum(g["flux"][band] for g in groups.values())
        for group in groups.values():
            group["flux"][band] *= (1.0 - share[band]) * total / max(extended, 1e-300)
    return groups, point


def _make_group(models, kwargs, flux):
    cores = [{"smoothing": CORE} if m == "SERSIC_ELLIPSE" else {} for m in models]
    return {"light_model_list": models, "profile_kwargs_list": cores, "kwargs_light": kwargs, "flux": flux}


def to_lenstronomy(row, host, seed, psf_mode="moffat", psf_supersampling=1, psf_size=63, bank=None):
    """Convert a row to lenstronomy's keyword arguments.

    Parameters
    ----------
    row : pandas.DataFrame
        One row of an injection table.
    host : pandas.DataFrame
        Host table holding its host.
    seed : int
        Of the injections: it places the clumps.
    psf_mode : str
        See `light.moffat_radii`.
    psf_supersampling, psf_size : int
        Samples per pixel and (odd) width [pixel] of the PSF images.
    bank : lensaudit.lensing.sources.ImageBank, optional
        Of rows with a bank_index.

    Returns
    -------
    dict
        lens_model_list, kwargs_lens; groups: per colour group (disc, clumps) light_model_list, profile_kwargs_list,
        kwargs_light of unit flux, and flux [nMgy] per band, extincted; point: point_source_type_list, kwargs_ps of unit
        flux and flux per band, or None; kwargs_psf per band, for `lenstronomy.Data.psf.PSF` (it holds the pixel, over
        which lenstronomy's supersampled convolution averages once more); psf: the same as parameters [arcsec];
        injection_id, seed, host_index.

    Raises
    ------
    UserError
        For a source with a gradient or with suppressed inner images, which lenstronomy does not have.
    """
    out = describe_row(row, host, seed, psf_mode, bank)
    amplitude, _, _ = out.pop("gradient")
    if out.pop("inner"):
        raise UserError(f"injection {out['injection_id']}: lenstronomy shows inner images; set inner_images to True")
    if amplitude:
        raise UserError(
            f"injection {out['injection_id']}: gradient = {amplitude:g} has no lenstronomy profile; set it to 0"
        )
    length = psf_size * psf_supersampling // 2 * 2 + 1
    axis = (np.arange(length) - length // 2) * PIXEL_SCALE / psf_supersampling
    out["kwargs_psf"] = {}
    for band, psf in out["psf"].items():
        kernel = evaluate_psf(axis[None, :], axis[:, None], psf, band)
        out["kwargs_psf"][band] = {"psf_type": "PIXEL", "kernel_point_source": kernel / kernel.sum(),
                                   "point_source_supersampling_factor": psf_supersampling}  # fmt: skip
    return out


def from_lenstronomy(description, host, bank=None):
    """Convert `to_lenstronomy`'s dictionary back to a row of an injection table.

    Parameters
    ----------
    description : dict
        lens_model_list (SIE or EPL, then any of SHEAR, MULTIPOLE with m = 3 or 4, PJAFFE), kwargs_lens, groups, point,
        psf, injection_id, seed, host_index.
    host : pandas.DataFrame
        Host table: fluxes are extincted, magnitudes are not.
    bank : lensaudit.lensing.sources.ImageBank, optional
        Of a disc that is an image; its group names the ``bank_index``.

    Returns
    -------
    pandas.DataFrame
        One row.

    Raises
    ------
    UserError
        For a model that a row cannot hold: a mass profile of another name, twice or off centre, a source that is not
        one Sersic, clumps other than those that seed and injection_id place; for what `checks.check_table` refuses.
    """
    who = f"injection {description.get('injection_id')}"
    try:
        table = _read_row(description, host, bank, who)
    except KeyError as error:
        raise UserError(f"{who}: its description or its host's row lacks {error}; give it") from None
    check_table(table, host, getattr(bank, "images", bank))
    return table


def _read_row(description, host, bank, who):
    """Return the row of `from_lenstronomy`."""
    row = {"injection_id": description["injection_id"], "host_index": description["host_index"]}
    names, all_kwargs = description["lens_model_list"], description["kwargs_lens"]
    if len(names) != len(all_kwargs):
        raise UserError(f"{who}: {len(names)} names in lens_model_list, {len(all_kwargs)} in kwargs_lens; give as many")
    for name, kwargs in zip(names, all_kwargs, strict=True):
        columns = _read_mass(name, kwargs, who)
        if set(columns) & set(row):
            raise UserError(f"{who}: a row cannot hold a second {name}; give one")
        row |= columns
    row = {"gamma1": 0.0, "gamma2": 0.0} | row
    groups, point = description["groups"], description.get("point")
    row |= _read_disc(groups["disc"], bank, who)
    flux = {b: sum(g["flux"][b] for g in groups.values()) + (point["flux"][b] if point else 0.0) for b in BANDS}
    own = host.set_index("host_index").loc[row["host_index"]]
    for band in BANDS:
        row[f"mag_source_{band}"] = float(photometry.flux_to_mag(flux[band] / own[f"mw_transmission_{band}"]))
    clumps = groups.get("clumps")
    row["n_clumps"] = len(clumps["kwargs_light"]) if clumps else 0
    host_flux = sum(g["flux"]["r"] for g in groups.values())
    row["clump_fraction"] = clumps["flux"]["r"] / host_flux if clumps else 0.0
    if point:
        row |= {"source_mode": "point"} | {f"quasar_fraction_{b}": point["flux"][b] / flux[b] for b in BANDS}
    psf = description["psf"]["r"]
    row |= {"psf_beta": psf["beta"], "psf_e1": psf["e1"], "psf_e2": psf["e2"], "psf_wings": psf["wings"]}
    table = pd.DataFrame([row])
    placed = source_kwargs(table, description["seed"])[1]
    given = clumps["kwargs_light"] if clumps else []
    if any(not np.isclose(a[k], b[k], rtol=1e-6, atol=1e-9) for a, b in zip(placed, given, strict=True) for k in a):
        raise UserError(f"{who}: its clumps are not those that seed {description['seed']} places; remove them")
    return table


def _read_mass(name, kwargs, who):
    """Return the columns that one lenstronomy mass profile fills."""
    if name != "PJAFFE" and any(kwargs.get(k, 0.0) for k in ("center_x", "center_y", "ra_0", "dec_0")):
        raise UserError(f"{who}: {name} is off centre; a row's lens is at the stamp's centre")
    if name in ("SIE", "EPL"):
        phi, q = ellipticity2phi_q(kwargs["e1"], kwargs["e2"])
        slope = {"slope": kwargs["gamma"]} if name == "EPL" else {}
        return {"theta_E": kwargs["theta_E"], "q": float(q), "phi": float(phi)} | slope
    if name == "SHEAR":
        return {"gamma1": kwargs["gamma1"], "gamma2": kwargs["gamma2"]}
    if name == "MULTIPOLE" and kwargs["m"] in (3, 4):
        return {f"a{kwargs['m']}": kwargs["a_m"], f"phi{kwargs['m']}": kwargs["phi_m"]}
    if name == "PJAFFE" and kwargs["Ra"] <= 1e-3 * kwargs["Rs"]:
        strength = 2.0 * kwargs["sigma0"] * kwargs["Ra"] * kwargs["Rs"] / (kwargs["Rs"] - kwargs["Ra"])
        return {"subhalo_theta_E": strength, "subhalo_x": kwargs["center_x"], "subhalo_y": kwargs["center_y"],
                "subhalo_r_cut": kwargs["Rs"]}  # fmt: skip
    raise UserError(
        f"{who}: a row cannot hold {name} {kwargs}; use SIE, EPL, SHEAR, MULTIPOLE with m = 3 or 4, PJAFFE without core"
    )


def _read_disc(group, bank, who):
    """Return the source columns of a group that is one SERSIC_ELLIPSE, or one INTERPOL that is an image of the bank."""
    models, kwargs = group["light_model_list"], group["kwargs_light"][0]
    if models == ["SERSIC_ELLIPSE"]:
        n = kwargs["n_sersic"]
        phi, q = ellipticity2phi_q(kwargs["e1"], kwargs["e2"])
        radius = kwargs["R_sersic"] * (sersic_b(n) / SersicUtil().b_n(n)) ** n
        return {"source_x": kwargs["center_x"], "source_y": kwargs["center_y"], "source_R": float(radius),
                "source_n": n, "source_q": float(q), "source_phi": float(phi)}  # fmt: skip
    if models != ["INTERPOL"] or "bank_index" not in group:
        raise UserError(f"{who}: the disc is {models}; a row holds one SERSIC_ELLIPSE or an image of the bank")
    images = getattr(bank, "images", bank)
    row = {"source_mode": "bank", "bank_index": group["bank_index"], "source_x": 0.0, "source_y": 0.0, "source_R": 1.0,
           "source_phi": kwargs["phi_G"], "source_n": 1.0, "source_q": 1.0}  # fmt: skip
    unit = bank_kwargs(row | {"injection_id": who}, images)
    row["source_R"] = kwargs["scale"] / unit["scale"]
    if kwargs["image"].shape != unit["image"].shape or not np.allclose(
        kwargs["image"] * row["source_R"] ** 2, unit["image"], atol=1e-6 * unit["image"].max()
    ):
        raise UserError(f"{who}: its image is not number {group['bank_index']} of the bank; give the bank it came from")
    for name in ("x", "y"):
        row[f"source_{name}"] = kwargs[f"center_{name}"] - row["source_R"] * unit[f"center_{name}"]
    return row


def evaluate_psf(dx, dy, psf, band):
    """Return the point-spread function [arcsec^-2] at offsets [arcsec].

    Parameters
    ----------
    dx, dy : ndarray
    psf : dict
        alpha [arcsec] (sigma where beta is infinite), beta, e1, e2, wings.
    band : str
    """
    phi, q = ellipticity2phi_q(psf["e1"], psf["e2"])
    u, v = dx * np.cos(phi) + dy * np.sin(phi), dy * np.cos(phi) - dx * np.sin(phi)
    square, area = (q * u**2 + v**2 / q) / psf["alpha"] ** 2, np.pi * psf["alpha"] ** 2
    if np.isinf(psf["beta"]):
        core = np.exp(-0.5 * square) / (2.0 * area)
    else:
        core = (psf["beta"] - 1.0) / area * np.exp(-psf["beta"] * np.log1p(square))
    if not psf["wings"]:
        return core
    return (1.0 - wing_flux(np.inf, band)) * core + wing_profile(np.hypot(dx, dy), band)
