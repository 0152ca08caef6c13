"""Distances and volumes of a prior's flat cosmology, by interpolation in astropy's."""

import functools

import numpy as np

LIGHT_SPEED = 299792.458  # km/s


@functools.cache
def _distances(h, omega_m):
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(100.0 * h, omega_m)
    z = np.linspace(0.0, 8.0, 1601)
    comoving = cosmology.comoving_distance(z).value
    volume = comoving**2 * LIGHT_SPEED / (100.0 * h * cosmology.efunc(z))
    return z, comoving, volume


def comoving_distance(z, prior):
    """Return the comoving distance [Mpc]."""
    grid, distance, _ = _distances(prior["cosmology"]["h"], prior["cosmology"]["omega_m"])
    return np.interp(z, grid, distance)


def distance_modulus(z, prior):
    """Return the distance modulus [mag]."""
    return 5.0 * np.log10((1.0 + np.asarray(z)) * comoving_distance(z, prior)) + 25.0


def volume_element(z, prior):
    """Return the comoving volume per unit redshift and steradian [Mpc^3]."""
    grid, _, volume = _distances(prior["cosmology"]["h"], prior["cosmology"]["omega_m"])
    return np.interp(z, grid, volume)
