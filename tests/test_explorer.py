"""The explorer shows what the table says, in a real browser, and gives no number where there is no support."""

import fcntl
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from lensaudit import explorer
from lensaudit.artifacts import UserError
from lensaudit.figures.style import SEQUENTIAL

AXES = {"theta_E": [0.5, 0.75, 1.0, 1.25, 1.5], "seeing": [0.9, 1.05, 1.2], "depth": [23.5, 24.0, 24.5, 25.0]}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POINTS = {"fpr_1e-2": 1.5, "score_0.3": -0.8}


def make_cells(seed):
    """Every number of a cell differs from every other's, so that a mix-up of rows or columns shows."""
    draws = np.random.default_rng(seed)
    rows = []
    for point, threshold in POINTS.items():
        for place in np.ndindex(*(len(v) for v in AXES.values())):
            n = int(draws.integers(150, 400))
            p = draws.uniform(0.1, 0.9)
            few = n < 200
            rows.append({
                "threshold_name": point, "threshold": threshold,
                **{a: v[i] for (a, v), i in zip(AXES.items(), place, strict=True)}, "n": n, "k": int(p * n),
                "n_hosts": n // 2, "n_bricks": n // 9, "n_eff": n * 0.7, "completeness": int(p * n) / n,
                "lower_68": p - 0.03, "upper_68": p + 0.03, "lower_95": p - 0.06, "upper_95": p + 0.06,
                "sufficient": not few, "reason": "fewer than 200 injections" if few else "",
            })  # fmt: skip
    return pd.DataFrame(rows)


DESCRIPTION = {
    "axes": AXES, "thresholds": POINTS, "default": "fpr_1e-2", "simulated": True, "version": "0123456789ab",
    "realism": {"outcome": "inconclusive", "panel": "not graded"},
    "hashes": {"detector": "resnet18-</script><b>", "cells": "c" * 64},
    "closure": {"closes": False, "verdict": "does not close", "recall": 0.53, "predicted": 0.226, "n_lenses": 134,
                "interval": [0.156, 0.296], "points": {"score_0.3": {"closes": True, "verdict": "closes",
                "recall": 0.51, "predicted": 0.52, "interval": [0.4, 0.6], "n_lenses": 134}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def tables():
    return {"collett": make_cells(1), "flat": make_cells(2).drop(columns=["n", "k", "n_hosts", "n_bricks"])}


class Browser:
    """Headless Chromium through its own protocol on two pipes: no port, no further package."""

    def __init__(self, profile):
        to_read, self.write_end = os.pipe()
        self.read_end, to_write = os.pipe()
        # The protocol wants descriptors 3 and 4: moved out of their way here, put there by a step before the browser.
        far = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (to_read, to_write)]
        step = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
                "os.execv(sys.argv[3], sys.argv[3:])")  # fmt: skip
        command = [sys.executable, "-c", step, *map(str, far), CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                   "--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}",
                   "--remote-debugging-pipe"]  # fmt: skip
        self.process = subprocess.Popen(command, pass_fds=far, stderr=subprocess.DEVNULL)
        for end in (to_read, to_write, *far):
            os.close(end)
        self.number, self.events, self.rest, self.session = 0, [], b"", None
        self.session = self.call("Target.attachToTarget", flatten=True, targetId=self.call(
            "Target.createTarget", url="about:blank")["targetId"])["sessionId"]  # fmt: skip
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        own = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": parameters} | own
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        while b"\0" not in self.rest:
            part = os.read(self.read_end, 1 << 16)
            assert part, "the browser ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def run(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def go(self, address):
        self.call("Page.navigate", url=address)
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def texts(self):
        return self.run("Object.fromEntries(['value', 'reason', 'where', 'counts', 'closure-text', 'realism-text', "
                        "'sky', 'notice', 'hashes', 'rows', 'curve', 'map'].map(i => [i, "
                        "document.getElementById(i).textContent.replace(/\\s+/g, ' ')]))")  # fmt: skip

    def close(self):
        self.call("Browser.close") if self.process.poll() is None else None
        self.process.wait(timeout=20)
        os.close(self.write_end), os.close(self.read_end)


@pytest.fixture(scope="module")
def server(tables, tmp_path_factory):
    """A server of the page's folder that notes every path asked for."""
    folder = tmp_path_factory.mktemp("explorer")
    explorer.write_explorer(folder / "explorer.html", tables, DESCRIPTION)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *_):
            asked.append(self.path)

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/explorer.html", asked
    served.shutdown()
    served.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine; the page is looked at where there is one")
    own = Browser(tmp_path_factory.mktemp("browser"))
    yield own
    own.close()


def address(base, row, prior="collett"):
    return (f"{base}#theta={row.theta_E}&seeing={row.seeing}&depth={row.depth}&point={row.threshold_name}"
            f"&prior={prior}")  # fmt: skip


def pick(cells, sufficient):
    return cells[cells["sufficient"] == sufficient].sample(4, random_state=3)


def test_numbers_are_those_of_the_table(browser, server, tables):
    for prior, cells in tables.items():
        for row in pick(cells, True).itertuples():
            browser.go("about:blank")
            browser.go(address(server[0], row, prior))
            shown = browser.texts()
            assert shown["value"] == f"{row.completeness:.3f}"
            parts = [f"{row.lower_68:.3f}–{row.upper_68:.3f}", f"{row.lower_95:.3f}–{row.upper_95:.3f}",
                     f"Effective number{row.n_eff:.1f}"]  # fmt: skip
            if prior == "collett":
                parts += [f"n{row.n}", f"Found{row.k}", f"Galaxies used{row.n_hosts}", f"bricks{row.n_bricks}"]
            assert all(part in shown["counts"] for part in parts), shown["counts"]
            assert prior == "collett" or "Found" not in shown["counts"]


def test_cells_without_support_show_no_number(browser, server, tables):
    for row in pick(tables["collett"], False).itertuples():
        browser.go("about:blank")
        browser.go(address(server[0], row))
        shown = browser.texts()
        assert shown["value"] == "No number here" and "fewer than 200 injections" in shown["reason"]
        assert f"{row.completeness:.3f}" not in " ".join(shown.values())
        assert "interval" not in shown["counts"] and "Found" not in shown["counts"]
        assert browser.run("document.querySelectorAll('#map rect[fill^=url]').length") >= 1


def test_sliders_keys_and_selects_move_the_numbers(browser, server, tables):
    cells = tables["collett"].set_index(["threshold_name", "theta_E", "seeing", "depth"])["completeness"]
    cells = cells.where(tables["collett"]["sufficient"].to_numpy())

    def expect(*place):
        value = cells[place]
        assert browser.texts()["value"] == (f"{value:.3f}" if value == value else "No number here")

    browser.go("about:blank")
    browser.go(f"{server[0]}#theta=0.75&seeing=1.05&depth=24.5")
    expect("fpr_1e-2", 0.75, 1.05, 24.5)
    browser.run("document.getElementById('theta_E').focus()")
    browser.press("ArrowRight")
    expect("fpr_1e-2", 1.0, 1.05, 24.5)
    browser.run("document.getElementById('map').focus()")
    browser.press("ArrowUp")
    browser.press("ArrowLeft")
    expect("fpr_1e-2", 0.75, 1.2, 24.5)
    browser.run("(e => { e.value = 'score_0.3'; e.dispatchEvent(new Event('change')); })"
                "(document.getElementById('point'))")  # fmt: skip
    expect("score_0.3", 0.75, 1.2, 24.5)
    assert "point=score_0.3" in browser.run("location.hash")
    browser.run("location.hash = '#theta=1.5'; new Promise(done => setTimeout(done, 50))")
    expect("score_0.3", 1.5, 1.2, 24.5)


def test_values_outside_the_map_are_refused(browser, server):
    browser.go("about:blank")
    browser.go(f"{server[0]}#theta=4&depth=&point=fpr_9")
    notice = browser.texts()["notice"]
    assert "theta 4 (the map holds 0.375 to 1.625 arcsec)" in notice and "depth" in notice and "fpr_9" in notice
    browser.go("about:blank")
    browser.go(f"{server[0]}#theta=1.625")  # the upper edge belongs to the last cell, as in a query
    assert "radius 1.375 to 1.625" in browser.texts()["where"]


def test_page_says_what_it_is(browser, server):
    browser.go("about:blank")
    browser.go(server[0])
    shown = browser.texts()
    assert shown["sky"] == "simulated sky" and "inconclusive" in shown["realism-text"]
    assert "does not close" in shown["closure-text"] and "0.226" in shown["closure-text"]
    assert "resnet18-</script><b>" in shown["hashes"]
    assert browser.run("getComputedStyle(document.querySelector('#closure strong')).color") == "rgb(168, 32, 26)"
    browser.go("about:blank")
    browser.go(f"{server[0]}#point=score_0.3")
    assert "Closure test: closes." in browser.texts()["closure-text"]
    assert "bad" not in browser.run("document.getElementById('closure').className")


def test_untested_closure_counts_as_not_closing(tables):
    own = {key: value for key, value in DESCRIPTION.items() if key != "closure"}
    state = explorer.collect_data(tables, own)["closure"]["fpr_1e-2"]
    assert state["closes"] is False and state["verdict"] == "not tested" and "Do not correct" in state["text"]


def test_phone_width_needs_no_scrolling_sideways(browser, server):
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    browser.go("about:blank")
    browser.go(server[0])
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.run("Math.min(...[...document.querySelectorAll('svg text')].map("
                       "t => parseFloat(getComputedStyle(t).fontSize)))") >= 11  # fmt: skip
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_nothing_is_fetched_and_nothing_goes_wrong(browser, server):
    browser.go("about:blank")
    browser.go(server[0])
    own = [e["params"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert {p["request"]["url"].split("#")[0] for p in own} <= {server[0], "about:blank", "data:,"}
    assert all(line == "/explorer.html" for line in server[1])
    wrong = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded",
                                                              "Runtime.consoleAPICalled")]  # fmt: skip
    assert not wrong


def test_unsupported_numbers_are_not_even_in_the_file(tables):
    packed = explorer.collect_data(tables, DESCRIPTION)["tables"]["collett"]["fpr_1e-2"]
    own = tables["collett"].query("threshold_name == 'fpr_1e-2'")
    assert [p is None for p in packed["p"]] == list(~own["sufficient"])
    assert all(packed[key][i] is None for key in explorer.BOUNDS for i in np.flatnonzero(~own["sufficient"]))


def test_priors_come_from_the_products_own_queries(tables):
    class Product:
        axes, description, cells = AXES, DESCRIPTION | {"prior_name": "collett"}, tables["collett"]

        def query(self, theta_E, seeing, depth, threshold, prior, level):
            if prior not in ("collett", "flat", "brief"):
                raise UserError("not by weights")
            p = np.arange(len(theta_E)) / 100
            width = {0.68: 0.01, 0.95: 0.02}[level]
            return pd.DataFrame({"theta_E": theta_E, "seeing": seeing, "depth": depth, "p": p, "lower": p - width,
                                 "upper": p + width, "n_eff": 40.0, "in_support": prior == "flat",
                                 "reason": ["" if prior == "flat" else "too few"] * len(p)})  # fmt: skip

    found = explorer.tabulate_priors(Product())
    assert list(found) == ["collett", "flat", "brief"] and found["collett"] is tables["collett"]
    own = found["flat"]
    assert len(own) == len(tables["collett"]) and (own["upper_95"] - own["upper_68"]).to_numpy() == pytest.approx(0.01)
    data = explorer.collect_data(found, DESCRIPTION)
    assert list(data["tables"]) == ["collett", "flat"] and "under: faint arcs" in data["priors"]["flat"]
    assert data["tables"]["flat"]["score_0.3"]["p"][7] == 0.07 and data["tables"]["flat"]["score_0.3"]["n"][7] is None


def test_colours_are_those_of_the_figures(tables):
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    own = explorer.collect_data(tables, DESCRIPTION)["colours"]
    assert own == [to_hex(c) for c in colormaps[SEQUENTIAL](np.linspace(0, 1, len(own)))]


def test_page_is_one_small_file(tables, tmp_path):
    size = explorer.write_explorer(tmp_path / "explorer.html", tables, DESCRIPTION)
    text = (tmp_path / "explorer.html").read_text()
    assert size == len(text.encode()) < explorer.MAX_BYTES and [p.name for p in tmp_path.iterdir()] == ["explorer.html"]
    assert "src=" not in text and "@import" not in text and "__DATA__" not in text


def test_bad_products_are_refused(tables, tmp_path):
    cells = tables["collett"]
    with pytest.raises(UserError, match="no column n_eff"):
        explorer.write_explorer(tmp_path / "a.html", {"collett": cells.drop(columns="n_eff")}, DESCRIPTION)
    with pytest.raises(UserError, match="'flat' at fpr_1e-2 are not those of the axes"):
        explorer.write_explorer(tmp_path / "a.html", {"collett": cells, "flat": cells[1:]}, DESCRIPTION)
    with pytest.raises(UserError, match="no cells"):
        explorer.write_explorer(tmp_path / "a.html", {"collett": cells}, DESCRIPTION | {"thresholds": {}})
    assert not list(tmp_path.iterdir())
