"""A browser with the Play pages in it: built as the site builds them, served on this machine."""

import functools
import http.server
import importlib.util
import shutil
import threading
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = """\
site_name: Play
plugins: [search]
theme: {name: material, font: false, palette: [{scheme: default}]}
markdown_extensions:
  [admonition, attr_list, pymdownx.details, pymdownx.superfences, pymdownx.arithmatex: {generic: true}]
extra_css: [stylesheets/play.css]
extra_javascript: [{path: javascripts/play/play.js, type: module}]
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Address of the Play pages."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: the Play pages were not built")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    for part in ("play", "javascripts/play"):
        shutil.copytree(DOCS / part, folder / "docs" / part)
    (folder / "docs" / "stylesheets").mkdir()
    shutil.copy(DOCS / "stylesheets" / "play.css", folder / "docs" / "stylesheets")
    shutil.copy(DOCS / "glossary.md", folder / "docs")
    (folder / "mkdocs.yml").write_text(CONFIG)
    build(load_config(str(folder / "mkdocs.yml")))
    assets = folder / "site" / "assets"
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    hooks.write_networks(assets / "play")
    shutil.copy(DOCS / "assets" / "cat.png", assets)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/play/"
    server.shutdown()


@pytest.fixture
def visit(site, browser):
    """Opens a page, ready to use; afterwards nothing may have gone wrong in it, nor asked another host."""
    contexts, wrong = [], []

    def open_page(name: str = "", width: int = 1280, dark: bool = False, touch: bool = False, script: str = ""):
        calm = "no-preference" if script else "reduce"  # without motion a page opens with all time steps shown
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, has_touch=touch, reduced_motion=calm)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(script or "0")
        page.on("pageerror", lambda error: wrong.append(f"{name}: {error}"))
        page.on("console", lambda message: message.type == "error" and wrong.append(f"{name}: {message.text}"))
        page.on(
            "request", lambda request: request.url.startswith(site.removesuffix("play/")) or wrong.append(request.url)
        )
        name, _, state = name.partition("?")
        page.goto(site + (name + "/" if name else "") + f"?{state}")
        page.wait_for_function("document.querySelectorAll('[data-play]:not([data-ready])').length === 0")
        if dark:
            page.evaluate("document.body.dataset.mdColorScheme = 'slate'")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
