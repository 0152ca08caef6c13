"""Stamps from the survey viewer's fits-cutout service: few at a time, patiently, each file whole or not there."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from lensaudit.artifacts import UserError, read_json, write_atomic, write_json
from lensaudit.constants import BANDS, PIXEL_SCALE, STAMP_SIZE
from lensaudit.pixels.formats import read_fits_cutout, select_bands

RETRY_STATUS = (429, 500, 502, 503, 504)
MAX_WAIT = 60.0  # seconds between two tries, at most


class ViewerSource:
    """A pixel source over the fits-cutout service, with a folder of fetched files.

    Parameters
    ----------
    folder : path
        Keeps ``<galaxy_id>.fits`` and its ``<galaxy_id>.json`` (address and sha256); a file that is there and whole is
        not fetched again.
    url : str
    layer : str
        Such as ``ls-dr10``.
    connections : int
        Requests at once.
    retries : int
        Further tries after 429, 5xx, a time-out or a broken file, waiting `wait`, 2 `wait`, 4 `wait` ... seconds or as
        the service's Retry-After says.
    wait, timeout : float
        Seconds.

    Notes
    -----
    The service answers with a layer's default bands when one asked for is not there, so the bands are taken from the
    header and a missing one is a refusal. The same service gives ``invvar`` and ``maskbits`` planes; they are left.
    """

    def __init__(self, folder, url, layer="ls-dr10", connections=4, retries=5, wait=2.0, timeout=60.0):
        self.folder, self.url, self.layer = Path(folder), url, layer
        self.connections, self.retries, self.wait, self.timeout = connections, retries, wait, timeout
        self.identity = f"{url} {layer} {STAMP_SIZE} {PIXEL_SCALE} {''.join(BANDS)}"

    def make_url(self, ra, dec):
        """Return the address of one cutout; positions in degrees, seven decimals."""
        query = {
            "ra": f"{ra:.7f}", "dec": f"{dec:.7f}", "size": STAMP_SIZE, "layer": self.layer, "pixscale": PIXEL_SCALE,
            "bands": "".join(BANDS),
        }  # fmt: skip
        return f"{self.url}?{urlencode(query)}"

    def read(self, galaxies):
        """Fetch (or find) the stamps of ``galaxy_id``, ``ra``, ``dec`` [deg].

        Returns
        -------
        images : ndarray of shape (N, 3, 101, 101), float32 [nMgy]
            NaN for an object that could not be had.
        reasons : list of str
            "" when fine.
        """
        images = np.full((len(galaxies), len(BANDS), STAMP_SIZE, STAMP_SIZE), np.nan, dtype=np.float32)
        targets = list(zip(galaxies["galaxy_id"], galaxies["ra"], galaxies["dec"], strict=True))
        with ThreadPoolExecutor(self.connections) as pool:
            answers = list(pool.map(lambda target: self._fetch(*target), targets))
        for row, (image, _) in enumerate(answers):
            if image is not None:
                images[row] = image
        return images, [reason for _, reason in answers]

    def _fetch(self, galaxy_id, ra, dec):
        path, address = self.folder / f"{galaxy_id}.fits", self.make_url(ra, dec)
        if self._is_intact(path, address):
            return self._open(path)[:2]
        reason = ""
        for attempt in range(self.retries + 1):
            body, reason, pause = self._request(address)
            if body is not None:
                with write_atomic(path) as temporary:
                    temporary.write_bytes(body)
                image, reason, again = self._open(path)
                if image is not None:
                    write_json(path.with_suffix(".json"), {"url": address, "sha256": hashlib.sha256(body).hexdigest()})
                    return image, ""
                path.unlink()  # broken or without a band: never kept as if it were whole
                pause = pause if again else None
            if pause is None or attempt == self.retries:
                break
            time.sleep(min(pause or self.wait * 2**attempt, MAX_WAIT))
        return None, reason

    def _request(self, address):
        """Return (body, reason, seconds to wait before the next try): None when trying again is of no use."""
        import requests

        try:
            answer = requests.get(address, timeout=self.timeout)
        except (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            return None, f"cutout service: {type(error).__name__}", 0.0
        except requests.RequestException as error:
            return None, f"cutout service: {type(error).__name__}", None
        if answer.status_code == 200:
            return answer.content, "", 0.0
        reason = f"cutout service: status {answer.status_code}"
        after = answer.headers.get("Retry-After", "")
        return None, reason, (float(after) if after.isdigit() else 0.0) if answer.status_code in RETRY_STATUS else None

    @staticmethod
    def _is_intact(path, address):
        mark = path.with_suffix(".json")
        if not (path.is_file() and mark.is_file()):
            return False
        try:
            found = read_json(mark)
        except UserError:
            return False
        return found == {"url": address, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    @staticmethod
    def _open(path):
        """Return (image, reason, whether fetching again could help)."""
        try:
            stamp = read_fits_cutout(path)
        except UserError as error:
            return None, str(error), True
        try:
            image = select_bands(stamp)
        except UserError as error:
            return None, str(error), False
        if image.shape != (len(BANDS), STAMP_SIZE, STAMP_SIZE):
            return None, f"{path.name}: shape {image.shape}", False
        return image, "", False


def make_viewer_source(config, folder):
    """Return the source that the configuration describes, with fetched files kept in `folder`."""
    settings = config.cutouts
    return ViewerSource(
        folder, settings.viewer_url, config.survey.layer, settings.viewer_connections, settings.viewer_retries
    )
