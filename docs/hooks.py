"""What MkDocs does for this site besides Markdown: executed notebooks become pages, and nothing is run again.
Every page also gets a description, a picture to be shared with, and the sizes of its images.

A chapter ``tutorials/05_x.ipynb`` becomes ``learn/05_x.md`` with its figures ``learn/05_x/figure-1.png``, as generated
files: nothing is written into the checkout. The notebook itself lies beside its page, to download.
"""

import base64
import contextlib
import html
import io
import json
import posixpath
import re
import runpy
import sys
import warnings
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url
from PIL import Image
from py_mini_racer import JSEvalException, MiniRacer

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "tutorials"
KATEX = "assets/vendor/katex"
# As tutorials/build.py writes them.
WIDGET_TEXT = "[controls: run this cell to use them]"
PREDICT_LINE = "Predict first. Then run the cell, or open this output.\n"
WORDS = {  # what a page of a notebook says besides the notebook; docs/chinese.py has the same in Chinese
    "download": "[Download this notebook]({stem}.ipynb){{ download }}, or open it with `make lab`. "
    "It runs offline, on a CPU.",
    "setup": "Setup: imports, a fixed seed, one thread",
    "code": "Code",
    "code of": "Code: {comment}",
    "predict": "Output: predict first, then open",
    "controls": "*In a running notebook, controls stand here.*",
    "live": "## Play with it\n\nNothing to install: [open the page](../play/{demo}.md).",
    "needs JavaScript": "This demo needs JavaScript.",
}


# Notebooks


def on_config(config):
    """The chapters that are there, under Learn."""
    without_source(config)
    learn = next(item["Learn"] for item in config.nav if "Learn" in item)
    learn += [{title(cells(path)): f"learn/{path.stem}.md"} for path in chapters()]
    learn += [{"For teachers": "learn/teaching.md"}, {"Exercises to print": "learn/handout.md"}]


def without_source(config):
    """No links to edit a page where no repository is named."""
    if not config.repo_url:
        config.edit_uri = None


def on_files(files, config):
    """A page, its figures and the notebook, for every notebook; the changelog, which lies beside README.md."""
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    for path in chapters() + sorted(TUTORIALS.glob("solutions/[0-9]*.ipynb")):
        name = "learn/" + path.relative_to(TUTORIALS).with_suffix("").as_posix()
        text, figures = page_of(cells(path), path.stem)
        made = {f"{name}.md": text, f"{name}.ipynb": path.read_bytes()}
        made |= {f"{name}/figure-{number}.png": figure for number, figure in enumerate(figures, 1)}
        if figures and path.parent == TUTORIALS:
            made[f"{name}/thumbnail.png"] = thumbnail(figures[0])
        for uri, content in made.items():
            files.append(File.generated(config, uri, content=content))
    for path in sorted(TUTORIALS.glob("results/*.*")):  # which chapters link to
        files.append(File.generated(config, f"learn/results/{path.name}", content=path.read_bytes()))


def in_chinese(uri: str) -> bool:
    """Is there a Chinese edition of this page? docs/chinese.py makes it, a chapter from its translated cells."""
    return (ROOT / "docs" / "zh" / uri).is_file() or (TUTORIALS / "zh" / uri.removeprefix("learn/")).is_file()


def chapters() -> list[Path]:
    return sorted(TUTORIALS.glob("[0-9]*.ipynb"))


def cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
    return cells


def title(cells: list[dict]) -> str:
    return re.match(r"# (.+)", cells[0]["source"])[1].strip()


def page_of(cells: list[dict], stem: str, words: dict[str, str] = WORDS) -> tuple[str, list[bytes]]:
    """A notebook as Markdown, and its figures."""
    figures: list[bytes] = []
    parts = []
    for cell in cells:
        if cell["cell_type"] == "markdown":
            parts.append(prose(cell["source"]))
            continue
        tags = cell["metadata"].get("tags", [])
        source = fence(cell["source"], "{ .python }")
        if "setup" in tags:
            source = fold("note", words["setup"], source)
        elif "fold" in tags:
            source = fold("note", summary_of(cell["source"], words), source)
        parts.append(source)
        outputs = [shown(output, stem, figures, words) for output in cell["outputs"]]
        if "predict" in tags:
            outputs = [fold("example", words["predict"], "\n\n".join(outputs))]
        parts += outputs
    head, _, rest = parts[0].partition("\n")
    here = f'<div class="notebook" markdown>\n{words["download"].format(stem=stem)}\n</div>'
    return "\n\n".join([head, here, rest, *parts[1:]]), figures


def shown(output: dict, stem: str, figures: list[bytes], words: dict[str, str]) -> str:
    """What a cell printed or drew."""
    data = output.get("data", {})
    if "image/png" in data:
        figures.append(base64.b64decode("".join(data["image/png"])))
        file = f"{stem}/figure-{len(figures)}.png"
        width, height = Image.open(io.BytesIO(figures[-1])).size
        alt = re.sub(r"([^\w\s])", r"\\\1", output["metadata"]["image/png"]["alt"].replace("\n", " "))
        return f"[![{alt}]({file}){{ loading=lazy width={width} height={height} }}]({file}){{ .figure }}"
    text = "".join(output.get("text") or data["text/plain"]).removeprefix(PREDICT_LINE)
    if text == WIDGET_TEXT:
        return words["controls"]
    return fence(text.rstrip("\n"), "{ .text .no-copy .output }")


def prose(text: str) -> str:
    """A Markdown cell as Python-Markdown understands it: links to pages, folds, and blank lines where they are needed:
    around formulas, before lists and tables."""
    text = re.sub(r"\]\((?!\w+:)([\w./-]+)\.ipynb(#[\w-]+)?\)", r"](\1.md\2)", text)
    text = re.sub(r"\]\(((?:\.\./)*)\.\./docs/", r"](\1../", text)
    text = re.sub(r"^\$\$.+?\$\$$", lambda found: f"\n{' '.join(found[0].split())}\n", text, flags=re.S | re.M)
    text = re.sub(
        r"<details>\s*<summary>(.*?)</summary>(.*?)</details>",
        lambda found: fold("question", found[1], found[2].strip()),
        text,
        flags=re.S,
    )
    lines: list[str] = []
    fenced = paragraph = False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        if not before.strip():
            paragraph = bool(re.match(r"(?!\d+\. |[-*+] )[\w*_`$(\[\"]", line))
        elif paragraph and not fenced:  # inside it, a line may begin with a number or with ">"; a list begins with 1
            line = re.sub(r"^(?!1\.)(\d+)\. ", r"\1\\. ", line)
            line = re.sub(r"^>", r"\\>", line)
            paragraph = not re.match(r"1\. |[-*+] ", line)
        starts = [kind for kind in (r"\s*([-*+]|\d+\.) ", r"\s*\|") if re.match(kind, line)]
        if not fenced and starts and before.strip() and not re.match(starts[0] + r"|\s*[-*+] |\s{2,}|#", before):
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines)


def fence(text: str, kind: str) -> str:
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{ticks} {kind}\n{text}\n{ticks}"


def fold(kind: str, summary: str, text: str) -> str:
    inside = "\n".join(f"    {line}" if line else "" for line in text.split("\n"))
    return f'??? {kind} "{summary}"\n\n{inside}\n'


def summary_of(source: str, words: dict[str, str]) -> str:
    """What a folded cell says of itself: its first line, if that is a comment."""
    comment = re.match(r"# (?!%)(.+)", source)
    return words["code of"].format(comment=comment[1].replace('"', "'")) if comment else words["code"]


def thumbnail(figure: bytes) -> bytes:
    """The last frame of a figure, 480 pixels wide."""
    image = Image.open(io.BytesIO(figure))
    image.seek(getattr(image, "n_frames", 1) - 1)
    image = image.convert("RGB")
    image.thumbnail((480, 480))
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


# Pages with a part that is made


PICTURES = {  # what is shown of a section where its pages are shared; a chapter has its own key figure
    "concepts/": "images/concept_ssa.png",
    "guides/": "images/guide_events.png",
    "results": "images/results_landscape.png",
    "": "assets/share.png",
}
LIVE = {  # chapters, and what of them can be played with: the demo itself where it is small, else its page
    "learn/00_tour.md": "digit",
    "learn/01_leaky_neuron.md": "neuron",
    "learn/03_images_to_spikes.md": "photo",
    "learn/05_spiking_self_attention.md": "ssa",
    "learn/06_encoder_block.md": "digit",
    "learn/11_events.md": "events",
}


def on_page_markdown(markdown, page, config, files, words=WORDS):
    """Fills in what is made, such as ``<!-- chapters -->``; says what a page is about, in a sentence and a picture."""
    uri = page.file.src_uri
    if uri.startswith("learn/solutions/"):
        page.meta["search"] = {"exclude": True}
    if uri in LIVE:
        demo = LIVE[uri]
        markdown += f"\n\n{words['live'].format(demo=demo)}\n"
        if demo in ("neuron", "ssa"):
            markdown += f'\n<div data-play="{demo}"><noscript>{words["needs JavaScript"]}</noscript></div>\n'
    page.meta["chinese"] = in_chinese(uri)  # the language switch asks
    page.meta.setdefault("description", described(markdown) or config.site_description)
    own = f"{uri.removesuffix('.md')}/thumbnail.png"
    section = next(picture for start, picture in PICTURES.items() if uri.startswith(start))
    page.meta.setdefault("image", own if files.get_file_from_path(own) else section)
    markdown = markdown.replace("<!-- chapters -->", "\n".join(card(path.stem, cells(path)) for path in chapters()))
    markdown = markdown.replace("<!-- exercises -->", "\n\n".join(exercises(path) for path in chapters()))
    markdown = re.sub(r"<!-- minutes: (\w+) -->", lambda found: minutes(TUTORIALS / f"{found[1]}.ipynb"), markdown)
    return re.sub(r"<!-- help: (.+?) -->", lambda found: help_of(found[1].split()), markdown)


def described(markdown: str) -> str:
    """The first paragraph that is a sentence, as plain text of at most 200 characters."""
    markdown = re.sub(
        r'^---\n.*?^---\n|<!--.*?-->|```.*?```|<div class="notebook".*?</div>', "", markdown, flags=re.S | re.M
    )
    for paragraph in re.split(r"\n\s*\n", markdown):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?|<[^>]*>", r"\1", " ".join(paragraph.split()))
        text = plain(re.sub(r"[*`]", "", text)).strip()
        if (
            re.match(r"(?!Run time)[A-Z\u4e00-\u9fff]", text)
            and re.search(r"[.:。：]$", text)
            and not paragraph.lstrip().startswith(("#", "![", "[!"))
        ):
            return text if len(text) <= 200 else text[:197].rsplit(" ", 1)[0] + " ..."
    return ""


SYMBOLS = {
    "beta": "β",
    "tau": "τ",
    "alpha": "α",
    "sigma": "σ",
    "Theta": "Θ",
    "ge": "≥",
    "le": "≤",
    "top": "ᵀ",
    "cdot": "·",
}
SYMBOLS |= {"times": "×", "in": "∈", "partial": "∂", "sum": "Σ", "sqrt": "√", "approx": "≈", "neq": "≠", "pm": "±"}


def plain(text: str) -> str:
    r"""Text without TeX: ``\(V_{th} \ge 1\)`` as ``V_th ≥ 1``; a displayed formula goes."""

    def words(found: re.Match) -> str:
        formula = re.sub(r"\\t?frac\s*(?:\{(.*?)\}|(\d))\s*(?:\{(.*?)\}|(\d))", r"\1\2/\3\4", found[1] or found[2])
        formula = re.sub(r"\\([A-Za-z]+)", lambda name: SYMBOLS.get(name[1], ""), formula)
        return " ".join(re.sub(r"[\\{}&^]", "", formula).split())

    text = re.sub(r"\\\[.*?\\\]|\$\$.*?\$\$", "", text, flags=re.S)
    return re.sub(r"\\\((.+?)\\\)|\$([^$\n]*[\\_^{][^$\n]*)\$", words, text, flags=re.S)


def card(stem: str, cells: list[dict]) -> str:
    """A chapter in the list of chapters: key figure, title, the question it answers, run time."""
    head, line, question = re.match(r"# (.+?)\n+\*(.+?)\*\n+(.+?)(?:\n\n|\n## |$)", cells[0]["source"], re.S).groups()
    time = re.search(r"\d+ (s|秒)", line)[0]
    figure = next(o for cell in cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {}))
    alt = html.escape(figure["metadata"]["image/png"]["alt"])
    return f"""<div class="chapter" markdown>
![{alt}]({stem}/thumbnail.png){{ loading=lazy }}
<div markdown>
**[{head}]({stem}.md)** <span class="time">{time}</span>

{prose(question)}
</div>
</div>
"""


def exercises(path: Path) -> str:
    """The exercises of a chapter: what is asked, and the code to start from."""
    found = cells(path)
    parts, asked = [f"## {title(found)}"], []
    for cell in found:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            asked = [prose(cell["source"].rpartition("## Exercises\n")[2].strip())]
        else:
            asked.append(fence(cell["source"], "{ .python .no-copy }"))
        if any(tag.startswith("exercise-") for tag in tags):
            parts += asked
    return "\n\n".join(parts)


def minutes(path: Path) -> str:
    """What a class needs for a chapter and for its exercises, by the rule in docs/learn/teaching.md: two columns."""
    needed = tasks = 0.0
    for cell in cells(path):
        tags = cell["metadata"].get("tags", [])
        if any(tag.startswith("exercise-") for tag in tags):
            tasks += 10
        elif cell["cell_type"] == "markdown":
            needed += len(re.sub(r"<.+?>|!\[.*?\]\(.*?\)", "", cell["source"]).split()) / 100
        elif not any(tag.startswith("check-") for tag in tags):
            needed += not {"fold", "setup"} & set(tags)
            needed += sum("image/png" in output.get("data", {}) for output in cell["outputs"])
    return f"{5 * round(needed / 5)} | {tasks:.0f}"


def help_of(command: list[str]) -> str:
    """What ``python -m COMMAND --help`` prints."""
    module, *arguments = command
    printed = io.StringIO()
    with (
        warnings.catch_warnings(),
        patch.object(sys, "argv", [module, *arguments, "--help"]),
        patch.dict("os.environ", COLUMNS="80"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        warnings.simplefilter("ignore")  # runpy's, about a module that was imported before
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return fence(printed.getvalue().rstrip(), "{ .text .no-copy .output }")


def on_page_content(content, page, config, files):
    """Every image has its width and height, so that nothing moves when it arrives."""

    def sized(found: re.Match) -> str:
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.url), found[1])))
        if " width=" in found[0] or not found[1].endswith((".png", ".svg")) or not file:
            return found[0]
        if found[1].endswith(".svg"):
            width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', file.content_string).groups()
        else:
            width, height = Image.open(io.BytesIO(file.content_bytes)).size
        return f'{found[0][:-1].rstrip("/ ")} width="{width}" height="{height}">'

    return re.sub(r'<img [^>]*?src="([^"]+)"[^>]*>', sized, content)


# Formulas


@cache
def katex():
    """KaTeX, which is JavaScript, in an engine of this process."""
    engine = MiniRacer()
    engine.eval((Path(__file__).parent / KATEX / "katex.min.js").read_text(encoding="utf-8"))
    return engine


@cache
def formula(tex: str, display: bool) -> str:
    """A formula as HTML."""
    return katex().call("katex.renderToString", tex, {"displayMode": display})


def on_post_page(output, page, config):
    """Formulas are drawn here, so that nothing moves in the browser: a page with formulas loads a stylesheet and fonts,
    and no script. The search index is made before this, from the TeX."""

    def drawn(found: re.Match) -> str:
        tex = html.unescape(found[3])
        try:
            return f"{found[1]}{formula(tex, found[2] == '[')}{found[4]}"
        except JSEvalException as error:
            raise PluginError(f"{page.file.src_uri}: {tex}: {error}") from error

    output, count = re.subn(
        r'(<(?:span|div) class="arithmatex">)\\([(\[])(.+?)\\[)\]](</(?:span|div)>)', drawn, output, flags=re.S
    )
    if not count:
        return output
    sheet = get_relative_url(f"{KATEX}/katex.min.css", page.url)
    fonts = [
        get_relative_url(f"{KATEX}/fonts/KaTeX_{font}.woff2", page.url) for font in ("Main-Regular", "Math-Italic")
    ]
    links = "".join(f'<link rel="preload" href="{font}" as="font" type="font/woff2" crossorigin>' for font in fonts)
    return output.replace("</head>", f'{links}<link rel="stylesheet" href="{sheet}"></head>', 1)


# Search, and the networks for the pages that run in the browser


@event_priority(-100)  # after the search plugin has written its index
def on_post_build(config):
    site = Path(config.site_dir)
    tidy(site / "search" / "search_index.json")
    write_networks(site / "assets" / "play")


def tidy(index: Path, below: str = "") -> None:
    """The search index without code: it loads with every page, and half of it would be listings."""
    found = json.loads(index.read_text(encoding="utf-8"))
    for entry in found["docs"]:
        entry["location"] = entry["location"].removeprefix(below)
        entry["title"] = plain(entry["title"])
        entry["text"] = plain(re.sub(r"<pre.*?</pre>", "", entry["text"], flags=re.S))
    index.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def write_networks(folder: Path) -> None:
    """What the pages in the browser run: each network in a folder of its own, the digits' in ``folder`` itself."""
    from spikformer_edu.export import export

    for name, place in (("digits-2-64", "."), ("cifar10-2-128", "cifar10"), ("digits-motion-2-64", "motion")):
        export(name, folder / place, "js")
    write_recordings(folder / "motion")


def write_recordings(folder: Path) -> None:
    """``recordings.json`` and ``.bin``: the first test digit of each class, going round either way, simulated.

    An event is one little-endian uint32, ((t size + y) size + x) 2 + p, with t in microseconds.
    """
    from spikformer_edu.data import digits, digits_dvs, digits_motion

    pixels, targets = digits_dvs.images()
    test, size = digits.split(targets, None, None)[2], digits_motion.INFO.image_size
    numbers = [next(number for number in test if targets[number] == digit) for digit in range(10)]
    facts, codes = [], []
    for way in digits_motion.INFO.classes:
        recorded = digits_motion.record(pixels[numbers], numbers, way == "clockwise", size)
        for digit, (number, events) in enumerate(zip(numbers, recorded, strict=True)):
            picture = (16 * pixels[number]).int().flatten().tolist()  # scikit-learn's digit, with a margin
            facts.append({"digit": digit, "way": way, "events": len(events), "pixels": picture})
            codes.append(((events["t"] * size + events["y"]) * size + events["x"]) * 2 + events["p"])
    header = {"size": size, "period": digits_motion.PERIOD, "recordings": facts}
    (folder / "recordings.json").write_text(json.dumps(header, separators=(",", ":")), encoding="utf-8")
    (folder / "recordings.bin").write_bytes(np.concatenate(codes).astype("<u4").tobytes())
