"""Put lensed arcs into host stamps: table row to pixels.

The hosts' pixels carry their own sky noise; an injection adds the arc's photons and the arc's own shot noise, passed
through the coadd's resampling kernel, and nothing else. Every injection is a pure function of (seed, injection_id).
"""

import functools

import numpy as np
import torch

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection.checks import MAX_CLUMPS, check_table, resolve_modes
from lensaudit.injection.devices import choose_batch, pick_device, single_thread
from lensaudit.injection.light import band_fluxes, host_rows, moffat_radii, point_fluxes
from lensaudit.injection.noise import draw_noise, list_gains
from lensaudit.lensing.mass import PACK, pack_lens
from lensaudit.lensing.psf import check_kernel, narrow_core, transfer_image, transfer_psf
from lensaudit.lensing.render import choose_period, list_frequencies, make_transfer, render_arcs
from lensaudit.lensing.sources import make_components, place_clumps

EDGE = 10  # pixels beyond the stamp up to which point images are rendered: farther ones would come back periodically
ENGINES = ("lensaudit", "lenstronomy")
MEASURED = 2048  # injections measured together; what is kept of them is a few numbers


def prepare(table, own, seed, bands=BANDS, dtype=torch.float32, device="cpu", bank=None, size=RENDER_SIZE):
    """Turn rows into what `lensing.render.render_arcs` takes.

    Returns
    -------
    (dict, dict, tuple, dict)
        Lens parameters, components, the fluxes of discs and clumps with the clumpy stamps, and the keywords inner,
        bank and points as far as the rows need them.
    """
    lens = {k: table[k].to_numpy(dtype=np.float64) for k in PACK if k in table}
    n_clumps = table["n_clumps"].to_numpy()
    shape = [table[k].to_numpy(dtype=np.float64) for k in ("source_R", "source_q", "source_phi")]
    uniforms = np.full((len(table), 4 * MAX_CLUMPS), 0.5)
    clumpy = np.flatnonzero(n_clumps > 0)
    ids = table["injection_id"].to_numpy()[clumpy]
    uniforms[clumpy] = rng.draw_uniforms(seed, "injection/clumps", ids, 4 * MAX_CLUMPS)
    clumps = place_clumps(uniforms, *shape, n_clumps, MAX_CLUMPS)
    x, y, n = (table[k].to_numpy(dtype=np.float64) for k in ("source_x", "source_y", "source_n"))
    optional = {k: table[k].to_numpy() for k in ("gradient", "bank_index") if k in table}
    components, owner = make_components(x, y, shape[0], n, shape[1], shape[2], clumps, torch.float64, bank=bank,
                                        **optional)  # fmt: skip
    picked = [BANDS.index(b) for b in bands]
    discs, knots = (f[:, picked] for f in band_fluxes(table, own))
    discs, knots = (torch.as_tensor(f, dtype=dtype, device=device) for f in (discs, knots[owner]))
    extras = {"bank": bank} if "bank_index" in optional else {}
    if "inner_images" in table and not table["inner_images"].all():
        extras["inner"] = table["inner_images"].to_numpy(dtype=bool)
    points = point_fluxes(table, own)[:, picked]
    if points.any():
        from lensaudit.lensing.images import find_images  # compiled, for point sources only

        # A round lens has no isolated images of its centre; bounded as a source of finite size would be.
        images = find_images(x, y, pack_lens(lens | {"q": np.minimum(lens["q"], 0.9999)}))
        images[..., 2] = np.clip(images[..., 2], -1e3, 1e3)
        beyond = np.abs(images[..., :2]).max(axis=-1) > (0.5 * size + EDGE) * PIXEL_SCALE
        hidden = np.isnan(images[..., 2]) | beyond | ~points.any(axis=1)[:, None]
        if "inner" in extras:
            q, phi = lens["q"][:, None], lens["phi"][:, None]
            along = images[..., 0] * np.cos(phi) + images[..., 1] * np.sin(phi)
            across = images[..., 1] * np.cos(phi) - images[..., 0] * np.sin(phi)
            inside = q * along**2 + across**2 / q < lens["theta_E"][:, None] ** 2
            hidden |= inside & ~extras["inner"][:, None]
        images = np.where(hidden[..., None], 0.0, images)
        extras["points"] = tuple(torch.as_tensor(v, dtype=dtype, device=device) for v in (*images.transpose(2, 0, 1),
                                                                                      points))  # fmt: skip
    return lens, components, (discs, knots, torch.as_tensor(owner, device=device)), extras


def make_transfers(table, own, bands, psf_mode, period, dtype=torch.float32, device="cpu", psfsize=None):
    """Return the transfer functions of the rows' analytic PSFs: Moffats, elliptical or with outer wings where asked.

    Notes
    -----
    ``psf_e1``, ``psf_e2``: ellipticity, see `lensing.psf.stretch_frequencies`. ``psf_wings``: the survey's outer wings;
    the core is narrowed so that psfsize stays what it is.
    """
    alpha, beta = moffat_radii(table, own, bands, psf_mode, psfsize)
    wings = table["psf_wings"].to_numpy(dtype=bool) if "psf_wings" in table else None
    if wings is not None and wings.any():
        alpha[wings] = narrow_core(alpha[wings], beta[wings], bands)
    radii = torch.as_tensor(alpha, dtype=dtype, device=device)
    zeros, names, shape = np.zeros(len(table)), ("psf_e1", "psf_e2"), None
    if any(name in table for name in names):
        shape = [torch.tensor(np.ascontiguousarray(table.get(k, zeros)), dtype=dtype, device=device) for k in names]
    if wings is None and shape is None:
        return make_transfer(radii, beta, period, dtype, device)
    rows, columns = (f.to(radii) for f in list_frequencies(period))
    return transfer_psf(columns, rows, radii, beta, *(shape or (None, None)), wings, bands)


def render_table(table, hosts, config, seed, bands=BANDS, psf_mode="moffat", psf_images=None, panel_width=None,
                 dtype=torch.float32, batch_size=None, size=RENDER_SIZE, bank=None, psfsize=None,
                 engine="lensaudit"):  # fmt: skip
    """Render the noiseless arcs of a table.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table, N rows, checked.
    hosts : pandas.DataFrame
        Host table.
    config : lensaudit.config.Config
        injection.batch_size and panel_width, device.
    seed : int
    bands : sequence of str
    psf_mode : str
        See `light.moffat_radii`.
    psf_images : ndarray of shape (N, bands, K, K), optional
        PSF images on native pixels, in place of the Moffats.
    panel_width : float, optional
        In place of the configuration's. See `lensing.sample.sample_maps`; larger is coarser and faster.
    bank : lensing.sources.ImageBank, optional
        Needed when the table has ``bank_index``.
    psfsize : ndarray of shape (N, 3), optional
        psfsize [arcsec] per band in place of the hosts' own (ablation).
    engine : str
        ``"lenstronomy"`` renders row by row with that library, for checking (`oracle.render_rows`).

    Returns
    -------
    (ndarray of shape (N, bands, size, size) float32, ndarray of shape (N, bands))
        Extincted flux per pixel and summed lensed flux [nMgy].

    Raises
    ------
    UserError
        Naming the first row that cannot be rendered, or a band that is not known.
    """
    unknown = [band for band in bands if band not in BANDS]
    if unknown:
        raise UserError(f"band {unknown[0]!r} unknown; use {', '.join(BANDS)}")
    if engine not in ENGINES:
        raise UserError(f"engine {engine!r} unknown; use {' or '.join(ENGINES)}")
    check_table(table, hosts, bank)
    if engine == "lenstronomy":
        from lensaudit.injection.oracle import render_rows  # lenstronomy is not on every machine

        if psfsize is not None:
            raise UserError("engine 'lenstronomy' takes the hosts' own psfsize; leave psfsize out")
        return render_rows(table, hosts, config, seed, bands, psf_mode, psf_images, dtype, size, bank)
    return _render_rows(table, hosts, config, seed, bands, psf_mode, psf_images, panel_width, dtype, batch_size, size,
                        bank, psfsize)  # fmt: skip


def _render_rows(table, hosts, config, seed, bands=BANDS, psf_mode="moffat", psf_images=None, panel_width=None,
                 dtype=torch.float32, batch_size=None, size=RENDER_SIZE, bank=None, psfsize=None):  # fmt: skip
    """Render rows that are known to be good; see `render_table`."""
    table, own, device = resolve_modes(table), host_rows(table, hosts), pick_device(config.device)
    section = config.injection
    step, period = batch_size or section.batch_size or choose_batch(device, size), choose_period(size)
    panel_width = panel_width or section.panel_width
    images = np.zeros((len(table), len(bands), size, size), dtype=np.float32 if dtype == torch.float32 else np.float64)
    flux = np.zeros((len(table), len(bands)))
    if psf_images is not None:
        psf_images = np.asarray(psf_images)
        if psf_images.shape[:2] != images.shape[:2]:
            raise UserError(f"psf_images have shape {psf_images.shape}; give one per injection and band")
        psf_images = check_kernel(psf_images, size, ids=table["injection_id"].to_numpy())
    _check_psfsize(psfsize, table)
    for start in range(0, len(table), step):
        part = slice(start, min(start + step, len(table)))
        with single_thread():
            rows, hosts_of = table.iloc[part], own.iloc[part]
            lens, components, weights, extras = prepare(rows, hosts_of, seed, bands, dtype, device, bank, size)
            if psf_images is not None:
                given = torch.complex64 if dtype == torch.float32 else torch.complex128
                transfer = transfer_image(psf_images[part], period).to(device, given)
            else:
                widths = None if psfsize is None else psfsize[part]
                transfer = make_transfers(rows, hosts_of, bands, psf_mode, period, dtype, device, widths)
            arcs, total = render_arcs(lens, components, weights, transfer, size, panel_width, **extras)
        images[part], flux[part] = arcs.cpu().numpy(), total.cpu().numpy()
    return images, flux


def _check_psfsize(psfsize, table):
    """Refuse widths that are not one per injection and band, or that no PSF has."""
    if psfsize is None:
        return
    if np.shape(psfsize) != (len(table), len(BANDS)):
        raise UserError(f"psfsize has shape {np.shape(psfsize)}; give one per injection and band")
    good = (np.asarray(psfsize) > 0.5) & (np.asarray(psfsize) < 0.5 * RENDER_SIZE * PIXEL_SCALE)
    if not good.all():
        row = int(np.argmin(good.all(axis=1)))
        name = table["injection_id"].to_numpy()[row]
        raise UserError(f"injection {name}: psfsize = {np.asarray(psfsize)[row]} arcsec is not usable; drop it")


def inject(table, hosts, images, config, seed, gain_override=None, psf_mode="moffat", noise=True, sky_noise=False,
           psf_images=None, bank=None, psfsize=None, correlated=True, engine="lensaudit"):  # fmt: skip
    """Add lensed arcs to host stamps.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table, N rows.
    hosts : pandas.DataFrame
        Host table holding every host_index of the table.
    images : ndarray of shape (N, 3, 65, 65), float32 [nMgy]
        Each injection's host, centre-cropped.
    config : lensaudit.config.Config
    seed : int
    gain_override : float, optional
        Gain in e-/nMgy in place of the coadd's (ablation; 150 is the historical error).
    psf_mode : str
        ``"moffat"`` or ``"gaussian_psfsize"`` (ablation).
    noise : bool
        False leaves the arc's own shot noise out (ablation).
    sky_noise : bool
        True adds sky noise a second time (ablation: the hosts carry it already).
    psf_images : ndarray of shape (N, 3, K, K), optional
        PSF images in place of the Moffats.
    bank : lensing.sources.ImageBank, optional
        Needed when the table has ``bank_index``.
    psfsize : ndarray of shape (N, 3), optional
        psfsize [arcsec] in place of the hosts' own for the arc's PSF (ablation).
    correlated : bool
        False draws the arc's shot noise pixel by pixel, without the coadd's kernel (ablation).
    engine : str
        As `render_table` takes it.

    Returns
    -------
    (ndarray, ndarray), each of shape (N, 3, 65, 65), float32 [nMgy]
        Hosts with arcs, and the noiseless arcs. A row of zero flux returns its host's bits; exact zeros of a host are
        pixels without data and stay zero.

    Raises
    ------
    UserError
        Naming the first row that cannot be rendered.
    """
    images = np.asarray(images)
    if images.dtype.kind not in "fiu":
        raise UserError(f"host stamps are of type {images.dtype}; give numbers [nMgy]")
    images, table = images.astype(np.float32, copy=False), table.reset_index(drop=True)
    expected = (len(table), len(BANDS), RENDER_SIZE, RENDER_SIZE)
    if images.shape != expected:
        raise UserError(f"host stamps have shape {images.shape}; expected {expected}, one stamp per injection")
    if psf_images is not None and np.shape(psf_images)[:2] != expected[:2]:
        raise UserError(f"psf_images have shape {np.shape(psf_images)}; give one per injection and band")
    check_table(table, hosts, bank)
    table = resolve_modes(table)
    out, own = images.copy(), host_rows(table, hosts)
    arcs = np.zeros_like(images)
    bright = np.flatnonzero((sum(band_fluxes(table, own)) + point_fluxes(table, own) > 0).any(axis=1))
    if len(bright):
        given, widths = (None if v is None else np.asarray(v)[bright] for v in (psf_images, psfsize))
        render = _render_rows if engine == "lensaudit" else functools.partial(render_table, engine=engine)
        arcs[bright], _ = render(table.iloc[bright], hosts, config, seed, psf_mode=psf_mode, psf_images=given,
                                 bank=bank, psfsize=widths)  # fmt: skip
    gain = list_gains(own, gain_override)
    ids = table["injection_id"].to_numpy()
    for row in bright:
        out[row] += arcs[row]
        if noise:
            sigma = np.sqrt(np.maximum(arcs[row], 0.0) / gain[row].astype(np.float32)[:, None, None])
            out[row] += draw_noise(ids[row : row + 1], sigma[None], seed, correlated=correlated)[0]
        if sky_noise:
            sigma = [photometry.depth_to_sigma(own[f"psfdepth_{b}"][row], own[f"psfsize_{b}"][row]) for b in BANDS]
            flat = np.broadcast_to(np.float32(sigma)[:, None, None], arcs[row].shape)
            out[row] += draw_noise(ids[row : row + 1], flat[None], seed, "injection/sky")[0]
        out[row][images[row] == 0] = 0.0
    return out, arcs


def measure_injections(table, hosts, config, seed, bank=None, psf_mode="moffat", psfsize=None):
    """Add what only the rendered arc knows: mu, lensed magnitudes and arc_snr_true.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table without these columns.
    hosts, config, seed, bank, psf_mode, psfsize
        As `inject` takes them.

    Returns
    -------
    pandas.DataFrame
        With mu (r-band lensed over unlensed flux), mag_lensed_{g,r,z} (extinction removed, as mag_source), arc_snr_true
        (sqrt(sum f^2) / sigma_pix of the noiseless convolved r-band arc).

    Notes
    -----
    Rendered with panels twice as wide as those of pictures: mu and S/N to 0.3 per cent for 99 of 100 rows.
    Magnifications of g and z are taken from r: colour gradients move them by less than 0.05 mag.
    """
    own, coarse = host_rows(table, hosts), 2.0 * config.injection.panel_width
    flux, power = np.zeros(len(table)), np.zeros(len(table))
    for start in range(0, len(table), MEASURED):
        part = slice(start, start + MEASURED)
        widths = None if psfsize is None else psfsize[part]
        images, lensed = _render_rows(table.iloc[part], hosts, config, seed, ("r",), psf_mode, panel_width=coarse,
                                      bank=bank, psfsize=widths)  # fmt: skip
        flux[part], power[part] = lensed[:, 0], (images[:, 0].astype(np.float64) ** 2).sum(axis=(1, 2))
    unlensed = photometry.mag_to_flux(table["mag_source_r"]) * own["mw_transmission_r"].to_numpy()
    mu = flux / np.maximum(unlensed, 1e-30)
    snr = np.sqrt(power) / photometry.depth_to_sigma(own["psfdepth_r"], own["psfsize_r"])
    with np.errstate(divide="ignore"):
        lensed = {f"mag_lensed_{b}": table[f"mag_source_{b}"].to_numpy() - 2.5 * np.log10(mu) for b in BANDS}
    return table.assign(mu=mu, **lensed, arc_snr_true=snr)
