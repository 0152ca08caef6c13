"""The cutout client against a local server that fails in every way the real one does."""

import io
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lensaudit.config import load_config
from lensaudit.pixels.viewer import ViewerSource, make_viewer_source


def make_answer(ra, dec, bands="grz"):
    planes = np.stack([np.full((101, 101), float(ord(band)), dtype=np.float32) for band in bands])
    header = fits.Header({"BANDS": bands} | {f"BAND{i}": band for i, band in enumerate(bands)})
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=ra, CRVAL2=dec, CRPIX1=51.0, CRPIX2=51.0,
                  CD1_1=-0.262 / 3600, CD1_2=0.0, CD2_1=0.0, CD2_2=0.262 / 3600)  # fmt: skip
    buffer = io.BytesIO()
    fits.PrimaryHDU(planes, header).writeto(buffer)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        ra, server = float(query["ra"]), self.server
        with server.lock:
            server.seen[ra] += 1
            server.queries.append(query)
            server.active += 1
            server.peak = max(server.peak, server.active)
        try:
            status, body = self.choose(ra, float(query["dec"]), server.seen[ra])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        finally:
            with server.lock:
                server.active -= 1

    def choose(self, ra, dec, n):
        whole = make_answer(ra, dec)
        if ra == 2.0 and n == 1:
            return 429, b""
        if ra == 3.0 and n <= 2:
            return 503, b""
        if ra == 4.0:
            return 404, b""
        if ra == 5.0 and n == 1:
            return 200, whole[: len(whole) // 2]
        if ra == 6.0:
            return 200, make_answer(ra, dec, "giz")  # the layer's default bands instead of those asked for
        if ra == 7.0:
            return 500, b""
        return 200, whole

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.seen, server.queries, server.active, server.peak = threading.Lock(), Counter(), [], 0, 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def make_source(server, folder, **changes):
    url = f"http://127.0.0.1:{server.server_address[1]}/fits-cutout"
    return ViewerSource(folder, url, **({"connections": 2, "retries": 2, "wait": 0.01, "timeout": 5.0} | changes))


def make_rows(n=8):
    return pd.DataFrame({"galaxy_id": [f"8-1-{i}" for i in range(1, n + 1)], "ra": np.arange(1.0, n + 1), "dec": 2.0})


def test_nothing_is_lost_and_nothing_half_written(server, tmp_path):
    images, reasons = make_source(server, tmp_path).read(make_rows())
    fine = [reason == "" for reason in reasons]
    assert fine == [True, True, True, False, True, False, False, True]
    assert "404" in reasons[3] and "500" in reasons[6]
    assert "band" in reasons[5] and "8-1-6.fits" in reasons[5]
    assert images[0, :, 0, 0].tolist() == [ord("g"), ord("r"), ord("z")]
    assert np.isnan(images[~np.array(fine)]).all() and np.isfinite(images[fine]).all()
    assert server.seen == {1.0: 1, 2.0: 2, 3.0: 3, 4.0: 1, 5.0: 2, 6.0: 1, 7.0: 3, 8.0: 1}
    assert server.peak <= 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"8-1-{i}.{end}" for i in (1, 2, 3, 5, 8) for end in ("fits", "json"))
    query = server.queries[0]
    assert query == {"ra": query["ra"], "dec": "2.0000000", "size": "101", "layer": "ls-dr10", "pixscale": "0.262",
                     "bands": "grz"}  # fmt: skip


def test_resume_fetches_only_what_is_not_whole(server, tmp_path):
    rows = make_rows(3)
    first, _ = make_source(server, tmp_path).read(rows)
    server.seen.clear()
    damaged = tmp_path / "8-1-2.fits"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    second, reasons = make_source(server, tmp_path).read(rows)
    assert reasons == [""] * 3 and np.array_equal(first, second)
    assert set(server.seen) == {2.0}


def test_silent_service_is_a_reason(tmp_path):
    source = ViewerSource(tmp_path, "http://127.0.0.1:9/fits-cutout", retries=1, wait=0.01, timeout=0.5)
    _, reasons = source.read(make_rows(1))
    assert "ConnectionError" in reasons[0] or "Timeout" in reasons[0]


def test_source_follows_the_configuration(tmp_path):
    config = load_config("real")
    source = make_viewer_source(config, tmp_path)
    assert source.make_url(150.1, -2.5).startswith(
        config.cutouts.viewer_url + "?ra=150.1000000&dec=-2.5000000&size=101"
    )
    assert source.connections == config.cutouts.viewer_connections
