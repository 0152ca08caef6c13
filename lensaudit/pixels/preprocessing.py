"""The one way pixels become a detector's input: the same specification in training, scoring and injection."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch

from lensaudit.artifacts import UserError
from lensaudit.constants import STAMP_SIZE


@dataclass(frozen=True)
class Preprocessing:
    """Robust scaling per band, clip or asinh, and a centre crop; immutable, kept inside every checkpoint.

    Per stamp and band ``y = (x - median) / (mad_factor * MAD)``, with median and MAD of the pixels at
    ``inner <= r < outer`` from the centre pixel ``S // 2``; then ``clip(y, -clip, clip)`` or ``asinh(y)``.

    Parameters
    ----------
    name : str
        ``raw_robust`` (1.4826 MAD, the sigma of a Gaussian), ``raw_mad`` (factor 1) or ``raw_asinh``.
    mad_factor : float
    clip : float
        In units of the scaled MAD.
    inner, outer : float
        Background annulus [pixels].
    crop : int
        Side of the output [pixels]; starts at pixel ``S // 2 - crop // 2``.
    stretch : str
        ``"clip"`` or ``"asinh"``.

    Notes
    -----
    Every size S whose box holds the annulus and the crop gives the same bits, so an injection rendered on 65 pixels and
    the 101-pixel stamp it came from are scored alike.
    """

    name: str = "raw_robust"
    mad_factor: float = 1.4826
    clip: float = 10.0
    inner: float = 20.0
    outer: float = 32.0
    crop: int = 64
    stretch: str = "clip"

    def apply(self, images, ids=None):
        """Normalise stamps.

        Parameters
        ----------
        images : Tensor of shape (N, 3, S, S), float32 [nMgy]
            S odd, such as 65 or 101.
        ids : sequence of str, length N, optional
            Named in a refusal; row numbers otherwise.

        Returns
        -------
        Tensor of shape (N, 3, crop, crop), float32, on the device of `images`

        Raises
        ------
        UserError
            For a stamp whose background is empty or constant in a band, or which is not finite inside the crop.
        """
        size = images.shape[-1]
        self._check_shape(images)
        y, x = np.indices((size, size)) - size // 2
        radius2 = (x * x + y * y).ravel()
        where = np.flatnonzero((radius2 >= self.inner**2) & (radius2 < self.outer**2))
        ring = images.flatten(2)[:, :, torch.as_tensor(where, device=images.device)]
        # An exact zero is how the survey writes "no data".
        bad = ~torch.isfinite(ring) | (ring == 0)
        centre = _masked_median(ring, bad)
        scale = self.mad_factor * _masked_median((ring - centre[..., None]).abs(), bad)
        start = size // 2 - self.crop // 2
        out = images[:, :, start : start + self.crop, start : start + self.crop]
        out = (out - centre[..., None, None]) / scale[..., None, None]
        fine = torch.isfinite(scale) & (scale > 0)
        finite = torch.isfinite(out).flatten(1).all(1)
        if not bool(fine.all() & finite.all()):
            self._refuse(fine.all(1).cpu().numpy(), finite.cpu().numpy(), ids)
        return out.asinh() if self.stretch == "asinh" else out.clamp(-self.clip, self.clip)

    def _check_shape(self, images):
        size, need = images.shape[-1], max(self.crop, int(2 * np.ceil(self.outer) - 1))
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[-2] != size or size % 2 == 0 or size < need:
            raise UserError(
                f"stamps of shape {tuple(images.shape)} cannot be preprocessed by {self.name}: give (N, 3, S, S), "
                f"S odd and at least {need}"
            )

    @staticmethod
    def _refuse(fine, finite, ids):
        row = int(np.flatnonzero(~(fine & finite))[0])
        who = f"object {ids[row]}" if ids is not None else f"stamp number {row}"
        why = "a pixel inside the crop is not finite" if fine[row] else "a band has an empty or constant background"
        raise UserError(f"{who}: {why}; leave it out (quality_ok says so beforehand)")

    def to_dict(self):
        """Return the specification as a plain dict, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Read a specification back; an unknown or missing key is an error."""
        names = {f.name for f in dataclasses.fields(cls)}
        if set(values) != names:
            raise UserError(f"preprocessing: keys {sorted(set(values) ^ names)} are unknown or missing")
        return cls(**values)

    def checksum(self):
        """Return the sha256 of the specification and of what it makes of a fixed analytic stamp.

        Notes
        -----
        The stamp holds small integers, so median, MAD and the clipped quotients are the same float32 bits on any
        machine whose arithmetic follows IEEE 754 (asinh is rounded to 1e-4).
        """
        out = self.apply(make_reference_stamp())
        if self.stretch == "asinh":
            out = torch.round(out * 1e4)
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode())
        digest.update(out.contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


def _masked_median(values, bad):
    """Median over the last axis without the bad entries, the mean of the middle two for an even number."""
    filled = values.masked_fill(bad, torch.inf)
    # numpy sorts ten times faster than torch on a CPU; sorting is exact, so the bits are the same.
    ordered = filled.sort(dim=-1).values if filled.is_cuda else torch.from_numpy(np.sort(filled.numpy(), axis=-1))
    n = (~bad).sum(-1, keepdim=True)
    low = ordered.gather(-1, ((n - 1) // 2).clamp(min=0))
    high = ordered.gather(-1, (n // 2).clamp(max=values.shape[-1] - 1))
    return ((low + high) / 2)[..., 0]


def make_preprocessing(name="raw_robust", clip=10.0, crop=64):
    """Return a named specification.

    Parameters
    ----------
    name : str
        ``raw_robust``, ``raw_mad`` (the prior work's, without 1.4826) or ``raw_asinh``.
    clip : float
        10 by default; 20 is the named alternative.
    crop : int
        64, or 101 for the parity baseline.
    """
    factors = {"raw_robust": 1.4826, "raw_mad": 1.0, "raw_asinh": 1.4826}
    if name not in factors:
        raise UserError(f"preprocessing {name!r} unknown; known are {', '.join(factors)}")
    stretch = "asinh" if name == "raw_asinh" else "clip"
    return Preprocessing(name=name, mad_factor=factors[name], clip=float(clip), crop=int(crop), stretch=stretch)


def make_reference_stamp():
    """Return the fixed integer-valued stamp of the checksum, Tensor of shape (1, 3, 101, 101), float32."""
    y, x = np.indices((STAMP_SIZE, STAMP_SIZE))
    noise = np.stack([(17 * y * y + 31 * x * x + 13 * x * y + 7 * band * x) % 97 - 48 for band in range(3)])
    peak = np.maximum(0, 900 - 4 * (x - 50) ** 2 - 4 * (y - 50) ** 2)
    return torch.as_tensor((noise + peak * np.array([1, 2, 3])[:, None, None])[None].astype(np.float32))
