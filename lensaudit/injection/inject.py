"""Put lensed arcs into host stamps: table row to pixels.

The hosts' pixels carry their own sky noise; an injection adds the arc's photons and the arc's own shot noise, passed
through the coadd's resampling kernel, and nothing else. Every injection is a pure function of (seed, injection_id).
"""

import contextlib
import functools

import numpy as np
import pandas as pd
import torch

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.lensing.mass import PACK
from lensaudit.lensing.psf import check_kernel, moffat_alpha, transfer_image
from lensaudit.lensing.render import choose_period, make_transfer, render_arcs
from lensaudit.lensing.sources import make_components, place_clumps

MAX_CLUMPS = 6
CLUMP_FRACTION = 0.3  # of the r-band flux when the table does not say
CLUMP_COLOUR = 0.2  # mag in g-r and r-z by which clumps are bluer than the whole source (an assumption)
PSF_MODES = ("moffat", "gaussian_psfsize")
PARAMETERS = (
    "theta_E", "q", "phi", "gamma1", "gamma2", "source_x", "source_y", "source_R", "source_n", "source_q",
    "source_phi", "mag_source_g", "mag_source_r", "mag_source_z", "n_clumps", "psf_beta",
)  # fmt: skip
LIMITS = {
    "theta_E": (0.0, 10.0), "q": (0.05, 1.0), "gamma1": (-0.5, 0.5), "gamma2": (-0.5, 0.5), "source_R": (1e-3, 10.0),
    "source_n": (0.3, 8.0), "source_q": (0.05, 1.0), "n_clumps": (0, MAX_CLUMPS), "psf_beta": (1.1, 100.0),
    "source_x": (-9.0, 9.0), "source_y": (-9.0, 9.0), "phi": (-100.0, 100.0), "source_phi": (-100.0, 100.0),
}  # fmt: skip


def check_table(table, hosts):
    """Refuse rows that cannot be rendered, before any rendering, naming the first row's id.

    Raises
    ------
    UserError
        For a missing column, a value that is not finite or out of range, or an unknown or unusable host.
    """
    missing = [c for c in ("injection_id", "host_index", *PARAMETERS) if c not in table]
    if missing:
        raise UserError(f"injection table lacks column(s) {', '.join(missing)}")
    ids = table["injection_id"].to_numpy()
    for name in PARAMETERS:
        values = table[name].to_numpy(dtype=np.float64)
        low, high = LIMITS.get(name, (-10.0, np.inf))
        bad = ~((values >= low) & (values <= high))
        if bad.any():
            k = int(np.argmax(bad))
            raise UserError(f"injection {ids[k]}: {name} = {values[k]:g} is outside [{low:g}, {high:g}]; drop it")
    lost = ~table["host_index"].isin(hosts["host_index"]).to_numpy()
    if lost.any():
        k = int(np.argmax(lost))
        raise UserError(f"injection {ids[k]}: host_index {table['host_index'].iloc[k]} is not in the host table")
    for band in BANDS:
        for name, high in ((f"psfsize_{band}", 0.5 * RENDER_SIZE * PIXEL_SCALE), (f"psfdepth_{band}", np.inf),
                           (f"mw_transmission_{band}", 1.0 + 1e-6)):  # fmt: skip
            values = hosts[name].to_numpy(dtype=np.float64)
            bad = ~((values > 0) & (values <= high)) & hosts["host_index"].isin(table["host_index"]).to_numpy()
            if bad.any():
                k = int(np.argmax(bad))
                who = hosts["galaxy_id"].iloc[k]
                raise UserError(f"host {who}: {name} = {values[k]:g} is not usable; drop the host")


def host_rows(table, hosts):
    """Return the host of each injection, row by row."""
    unique = hosts.drop_duplicates("host_index").set_index("host_index", drop=False)
    return unique.loc[table["host_index"].to_numpy()].reset_index(drop=True)


def band_fluxes(table, own):
    """Return the extincted unlensed flux [nMgy] of disc and clumps per band, each of shape (N, 3).

    Notes
    -----
    The source's total magnitude is kept in every band; clumps are `CLUMP_COLOUR` bluer than the whole in g-r and r-z.
    """
    total = np.stack([photometry.mag_to_flux(table[f"mag_source_{b}"]) * own[f"mw_transmission_{b}"] for b in BANDS], 1)
    share = table["clump_fraction"] if "clump_fraction" in table else pd.Series(CLUMP_FRACTION, index=table.index)
    share = np.where(table["n_clumps"] > 0, share, 0.0)
    tilt = 10.0 ** (0.4 * CLUMP_COLOUR * np.array([1.0, 0.0, -1.0]))
    clumps = total * np.minimum(share[:, None] * tilt, 0.95)
    return total - clumps, clumps


def moffat_radii(table, own, bands=BANDS, psf_mode="moffat"):
    """Return (alpha [pixel] of shape (N, bands), beta of shape (N,)) of each injection's PSF.

    Notes
    -----
    ``"moffat"``: psfsize converted to the true FWHM for the drawn beta. ``"gaussian_psfsize"``: a Gaussian whose FWHM
    is psfsize, unconverted (ablation).
    """
    if psf_mode not in PSF_MODES:
        raise UserError(f"psf_mode {psf_mode!r} unknown; use {' or '.join(PSF_MODES)}")
    psfsize = np.stack([own[f"psfsize_{b}"].to_numpy(dtype=np.float64) for b in bands], 1)
    if psf_mode == "gaussian_psfsize":
        return psfsize / photometry.FWHM_OF_SIGMA / PIXEL_SCALE, np.full(len(table), np.inf)
    beta = table["psf_beta"].to_numpy(dtype=np.float64)
    return moffat_alpha(photometry.psfsize_to_fwhm(psfsize, beta[:, None]), beta[:, None]) / PIXEL_SCALE, beta


def gains(own, gain_override=None):
    """Return the coadd gain [e-/nMgy] per row and band, shape (N, 3).

    Notes
    -----
    From columns ``exptime_<band>`` [s] when the host table has them, else from depth and seeing
    (`photometry.estimate_exptime`).
    """
    if gain_override is not None:
        return np.full((len(own), len(BANDS)), float(gain_override))
    out = []
    for band in BANDS:
        if f"exptime_{band}" in own:
            exptime = own[f"exptime_{band}"].to_numpy(dtype=np.float64)
        else:
            nobs = own[f"nobs_{band}"].to_numpy(dtype=np.float64)
            exptime = photometry.estimate_exptime(own[f"psfdepth_{band}"], own[f"psfsize_{band}"], nobs, band)
        out.append(photometry.gain_of(exptime, band))
    return np.stack(out, 1)


@functools.cache
def resampling_matrix(size=RENDER_SIZE, reach=6):
    """Return the matrix that gives white noise along one axis the coadd's correlation, float32.

    Notes
    -----
    A coadd averages Lanczos-3 resamplings at all sub-pixel shifts; its power is p(k) = <|sum_i L(i - d) e^(-iki)|^2>_d
    with the kernel normalised at every shift. The zero-phase filter with |H|^2 = p has per-pixel variance x 0.80 and
    rho(1,0) = 0.11, rho(2,0) = -0.076 in two dimensions (FACTS 1).
    """
    shift = (np.arange(512) + 0.5) / 512 - 0.5
    taps = np.arange(-3, 4)[None] - shift[:, None]
    kernel = np.where(np.abs(taps) < 3, np.sinc(taps) * np.sinc(taps / 3.0), 0.0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    power = (np.abs(np.fft.rfft(kernel, n=256, axis=1)) ** 2).mean(axis=0)
    filter_taps = np.fft.irfft(np.sqrt(power))
    offset = np.arange(size)[:, None] - np.arange(size)[None, :]
    return np.where(np.abs(offset) <= reach, filter_taps[offset % 256], 0.0).astype(np.float32)


def draw_noise(ids, sigma, seed, name="injection/noise"):
    """Draw coadd-like noise of a given white-equivalent sigma map.

    Parameters
    ----------
    ids : array_like of int, length N
    sigma : ndarray of shape (N, 3, S, S)
        White-equivalent standard deviation per pixel [nMgy].
    seed : int

    Returns
    -------
    ndarray of shape (N, 3, S, S), float32
    """
    matrix = resampling_matrix(sigma.shape[-1])
    out = np.empty(sigma.shape, dtype=np.float32)
    for row, number in enumerate(ids):
        white = rng.make_stream(seed, name, int(number)).standard_normal(sigma.shape[1:], dtype=np.float32)
        out[row] = matrix @ (white * sigma[row].astype(np.float32)) @ matrix.T
    return out


def prepare(table, own, seed, bands=BANDS, dtype=torch.float32, device="cpu"):
    """Turn rows into the tensors `lensing.render` takes.

    Returns
    -------
    (dict, dict, tuple)
        Lens parameters, components, and the fluxes of discs and clumps with the clumpy stamps.
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
    components, owner = make_components(x, y, shape[0], n, shape[1], shape[2], clumps, torch.float64)
    picked = [BANDS.index(b) for b in bands]
    discs, knots = (f[:, picked] for f in band_fluxes(table, own))
    discs, knots = (torch.as_tensor(f, dtype=dtype, device=device) for f in (discs, knots[owner]))
    return lens, components, (discs, knots, torch.as_tensor(owner, device=device))


@contextlib.contextmanager
def single_thread():
    """Run torch on one thread of the processor inside the block.

    The last bit of some kernels depends on how work is cut among threads, and waiting threads cost more than they bring
    at this size; use several workers instead.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name="auto"):
    """Return the torch device of a configuration's ``device``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def render_table(table, hosts, config, seed, bands=BANDS, psf_mode="moffat", psf_images=None, panel_width=None,
                 dtype=torch.float32, batch_size=None, size=RENDER_SIZE):  # fmt: skip
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
        See `moffat_radii`.
    psf_images : ndarray of shape (N, bands, K, K), optional
        PSF images on native pixels, in place of the Moffats.
    panel_width : float, optional
        In place of the configuration's. See `lensing.sample.sample_maps`; larger is coarser and faster.

    Returns
    -------
    (ndarray of shape (N, bands, size, size) float32, ndarray of shape (N, bands))
        Extincted flux per pixel and summed lensed flux [nMgy].
    """
    own, device = host_rows(table, hosts), pick_device(config.device)
    section = config.injection
    step, period = batch_size or section.batch_size, choose_period(size)
    panel_width = panel_width or section.panel_width
    images = np.zeros((len(table), len(bands), size, size), dtype=np.float32 if dtype == torch.float32 else np.float64)
    flux = np.zeros((len(table), len(bands)))
    if psf_images is not None:
        psf_images = check_kernel(psf_images, size)
    alpha, beta = moffat_radii(table, own, bands, psf_mode)
    for start in range(0, len(table), step):
        part = slice(start, min(start + step, len(table)))
        with single_thread():
            lens, components, weights = prepare(table.iloc[part], own.iloc[part], seed, bands, dtype, device)
            if psf_images is not None:
                given = torch.complex64 if dtype == torch.float32 else torch.complex128
                transfer = transfer_image(psf_images[part], period).to(device, given)
            else:
                radii = torch.as_tensor(alpha[part], dtype=dtype, device=device)
                transfer = make_transfer(radii, beta[part], period, dtype, device)
            arcs, total = render_arcs(lens, components, weights, transfer, size, panel_width)
        images[part], flux[part] = arcs.cpu().numpy(), total.cpu().numpy()
    return images, flux


def inject(table, hosts, images, config, seed, gain_override=None, psf_mode="moffat", noise=True, sky_noise=False,
           psf_images=None):  # fmt: skip
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

    Returns
    -------
    (ndarray, ndarray), each of shape (N, 3, 65, 65), float32 [nMgy]
        Hosts with arcs, and the noiseless arcs. A row of zero flux returns its host's bits.

    Raises
    ------
    UserError
        Naming the first row that cannot be rendered.
    """
    images = np.asarray(images, dtype=np.float32)
    table = table.reset_index(drop=True)
    expected = (len(table), len(BANDS), RENDER_SIZE, RENDER_SIZE)
    if images.shape != expected:
        raise UserError(f"host stamps have shape {images.shape}; expected {expected}, one stamp per injection")
    check_table(table, hosts)
    out, own = images.copy(), host_rows(table, hosts)
    arcs = np.zeros_like(images)
    bright = np.flatnonzero((sum(band_fluxes(table, own)) > 0).any(axis=1))
    if len(bright):
        given = None if psf_images is None else np.asarray(psf_images)[bright]
        arcs[bright], _ = render_table(table.iloc[bright], hosts, config, seed, psf_mode=psf_mode, psf_images=given)
    gain = gains(own, gain_override)
    ids = table["injection_id"].to_numpy()
    for row in bright:
        out[row] += arcs[row]
        if noise:
            sigma = np.sqrt(np.maximum(arcs[row], 0.0) / gain[row].astype(np.float32)[:, None, None])
            out[row] += draw_noise(ids[row : row + 1], sigma[None], seed)[0]
        if sky_noise:
            sigma = [photometry.depth_to_sigma(own[f"psfdepth_{b}"][row], own[f"psfsize_{b}"][row]) for b in BANDS]
            flat = np.broadcast_to(np.float32(sigma)[:, None, None], arcs[row].shape)
            out[row] += draw_noise(ids[row : row + 1], flat[None], seed, "injection/sky")[0]
    return out, arcs


def measure_injections(table, hosts, config, seed):
    """Add what only the rendered arc knows: mu, lensed magnitudes and arc_snr_true.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table without these columns.
    hosts : pandas.DataFrame
    config : lensaudit.config.Config
    seed : int

    Returns
    -------
    pandas.DataFrame
        With mu (r-band lensed over unlensed flux), mag_lensed_{g,r,z} (extinction removed, as mag_source), arc_snr_true
        (sqrt(sum f^2) / sigma_pix of the noiseless convolved r-band arc).

    Notes
    -----
    Rendered with coarser panels than pictures are.
    Magnifications of g and z are taken from r: colour gradients move them by less than 0.05 mag.
    """
    own = host_rows(table, hosts)
    images, flux = render_table(table, hosts, config, seed, bands=("r",), panel_width=1.5 * config.injection.panel_width)
    unlensed = photometry.mag_to_flux(table["mag_source_r"]) * own["mw_transmission_r"].to_numpy()
    mu = flux[:, 0] / np.maximum(unlensed, 1e-30)
    sigma = photometry.depth_to_sigma(own["psfdepth_r"], own["psfsize_r"])
    snr = np.sqrt((images[:, 0].astype(np.float64) ** 2).sum(axis=(1, 2))) / sigma
    with np.errstate(divide="ignore"):
        lensed = {f"mag_lensed_{b}": table[f"mag_source_{b}"].to_numpy() - 2.5 * np.log10(mu) for b in BANDS}
    return table.assign(mu=mu, **lensed, arc_snr_true=snr)


def remove_lens(table):
    """Return the table with unlensed sources of equal flux at the same place: the contaminant control."""
    brighter = 2.5 * np.log10(table["mu"].to_numpy())
    mags = {f"mag_source_{b}": table[f"mag_source_{b}"] - brighter for b in BANDS}
    return table.assign(theta_E=0.0, gamma1=0.0, gamma2=0.0, **mags, mu=1.0, multiplicity=1)
