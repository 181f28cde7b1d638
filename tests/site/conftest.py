"""The site, built once, with a server and a browser for it."""

import functools
import gzip
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SITE_URL, REPO_URL = "https://example.org/book/", "https://example.org/source"  # as a maintainer sets them


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site. A warning of the build fails every test here."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: the site was not built (pip install '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "SITE_URL": SITE_URL, "REPO_URL": REPO_URL}
    for config, goal in (("mkdocs.yml", folder), ("docs/mkdocs.zh.yml", folder / "zh")):  # as `make docs` does
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", str(goal)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served: under a path and with text compressed, as on a project's page of a host."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            return super().translate_path(path.removeprefix("/book"))

        def do_GET(self):
            file = Path(self.translate_path(self.path))
            file = file / "index.html" if self.path.partition("?")[0].endswith("/") else file
            if file.suffix not in (".html", ".css", ".js", ".json", ".svg") or not file.is_file():
                return super().do_GET()
            body = gzip.compress(file.read_bytes(), 6)
            self.send_response(200)
            headers = {"Type": self.guess_type(file), "Encoding": "gzip", "Length": len(body)}
            for name, value in headers.items():
                self.send_header(f"Content-{name}", str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/book/"
    server.shutdown()
    server.server_close()
