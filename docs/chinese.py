"""What MkDocs does for the Chinese edition, docs/mkdocs.zh.yml, besides what docs/hooks.py does for both.

Its pages are ``docs/zh/*.md`` and the chapters of which ``tutorials/zh/`` holds a translation. They lie below ``zh/``
in the English site, which is built first, and use its files: images, fonts, scripts, networks. A link to a page that is
not translated leads to the English page and says so.

``tutorials/zh/05_x.md`` holds the text of every Markdown cell of ``tutorials/05_x.ipynb`` and every alternative text,
each behind a comment with the key of the English text. Where the English text changes, its key does, and the page shows
the English until somebody translates it again. ``python docs/chinese.py`` prints what is missing; with a name, such as
``02_surrogate_gradient``, a whole chapter to begin with.
"""

import hashlib
import json
import logging
import posixpath
import re
import sys
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import hooks
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks.chinese")
ENGLISH = "（英文）"
ONLY_HERE = "<!-- only in Chinese -->"  # what follows it on a page has no English text
NOT_TRANSLATED = "> **此段尚未翻译，或英文原文已有更新。**\n\n"
WORDS = {
    "download": "[下载本章 notebook]({stem}.ipynb){{ download }}，或用 `make lab` 打开。无需联网，CPU 即可运行。",
    "setup": "准备：导入、固定随机种子、单线程",
    "code": "代码",
    "code of": "代码：{comment}",
    "predict": "输出：先预测，再展开",
    "controls": "*在运行中的 notebook 里，此处是交互控件。*",
    "live": "## 动手试试\n\n无需安装：[打开页面](../play/{demo}.md)。",
    "needs JavaScript": "此演示需要 JavaScript。",
}
PREDICT_LINE = "先预测，再运行这个单元格，或展开这段输出。\n"


# Chapters: the English notebook with the translated text


def key(text: str) -> str:
    """What a translation is found by. The time in the header may change without it."""
    return hashlib.sha256(re.sub(r"Run time \d+ s", "Run time", text.strip()).encode()).hexdigest()[:12]


def translations(path: Path) -> dict[str, str]:
    """Key and Chinese text of all that is translated of a chapter."""
    file = hooks.TUTORIALS / "zh" / f"{path.stem}.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    parts = re.split(r"^<!-- ([0-9a-f]{12})(?: alt)? -->\n", text, flags=re.M)
    return {key: text.strip() for key, text in zip(parts[1::2], parts[2::2], strict=True)}


def pictures(cell: dict) -> list[dict]:
    """Where the alternative texts of a cell are."""
    outputs = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    return [output["metadata"]["image/png"] for output in outputs]


def sources(path: Path) -> dict[str, tuple[str, str]]:
    """What of a chapter is to be translated: key, marker and English text."""
    found = {}
    for cell in hooks.cells(path):
        if cell["cell_type"] == "markdown":
            found[key(cell["source"])] = f"<!-- {key(cell['source'])} -->", cell["source"].strip()
        for picture in pictures(cell):
            found[key(picture["alt"])] = f"<!-- {key(picture['alt'])} alt -->", picture["alt"].strip()
    return found


def translated(path: Path, mark: str = NOT_TRANSLATED) -> list[dict]:
    """The cells of a chapter in Chinese; in English if it has no translation at all."""
    cells, chinese = hooks.cells(path), translations(path)
    for cell in cells if chinese else []:
        if cell["cell_type"] == "markdown":
            first, _, rest = cell["source"].partition("\n")
            if first.startswith("# "):  # the title comes first
                marked = f"{first}\n\n{mark}{rest.lstrip()}"
            else:
                marked = mark + cell["source"]
            cell["source"] = chinese.get(key(cell["source"]), marked)
        for picture in pictures(cell):
            picture["alt"] = chinese.get(key(picture["alt"]), picture["alt"])
    return cells


def notebook(path: Path) -> str:
    """The chapter in Chinese, to download."""
    made = json.loads(path.read_text(encoding="utf-8")) | {"cells": translated(path)}
    for cell in made["cells"]:
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", [])
            text[:] = [PREDICT_LINE if line == hooks.PREDICT_LINE else line for line in text]
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


# The site


class English(File):
    """A file of the English site: something to link to and to show, that is there already."""

    def is_documentation_page(self) -> bool:
        return False

    def copy_file(self, dirty: bool = False) -> None:
        pass

    @cached_property
    def page(self):
        """Its anchors, which MkDocs looks for when they are linked."""
        text = Path(self.abs_dest_path).read_text(encoding="utf-8")
        return SimpleNamespace(present_anchor_ids=set(re.findall(r' id="([^"]+)"', text)))


def english(config) -> Path:
    """The folder of the English site."""
    return Path(config.site_dir).parent


def english_file(uri: str) -> File:
    """Address of a page in the English site, and the path of its file."""
    return File(uri, None, "", True)


def source_of(uri: str) -> str:
    """The Markdown file of a page of the English site."""
    folder = posixpath.dirname(uri)
    index = posixpath.join(folder, "index.md")
    return index if (hooks.ROOT / "docs" / index).is_file() else f"{folder}.md"


def on_config(config):
    """The chapters under Learn; pages without a translation as links."""
    if not (english(config) / "index.html").is_file():
        raise PluginError(f"the English edition is not in {english(config)}: build it first (make docs builds both)")
    hooks.without_source(config)
    config.mdx_configs["toc"]["permalink_title"] = "本节链接"
    learn = next(item["学习"] for item in config.nav if "学习" in item)
    learn += [{hooks.title(translated(path)): f"learn/{path.stem}.md"} for path in hooks.chapters()]
    learn += [{"教师指南": "learn/teaching.md"}, {"练习（打印版）": "learn/handout.md"}]
    config.nav = [entry(item) for item in config.nav]


def entry(item: str | dict) -> str | dict:
    """An item of the navigation."""
    if isinstance(item, str):
        if hooks.in_chinese(item):
            return item
        text = (hooks.ROOT / "docs" / item).read_text(encoding="utf-8")
        item = {re.search(r"^# (.+)", text, re.M)[1]: item}
    ((title, goal),) = item.items()
    if isinstance(goal, list):
        return {title: [entry(child) for child in goal]}
    return {title: goal} if hooks.in_chinese(goal) else {title + ENGLISH: english_file(goal).url}


def on_files(files, config):
    """The pages with addresses below zh/; everything else is in the English site."""
    site = english(config)
    for file in list(files):
        if file.src_dir != config.docs_dir and (site / file.src_uri).is_file():  # of the theme
            files.remove(file)
    for path in hooks.chapters():
        if translations(path):
            text, _ = hooks.page_of(translated(path), path.stem, WORDS)
            files.append(File.generated(config, f"learn/{path.stem}.md", content=text))
            files.append(File.generated(config, f"learn/{path.stem}.ipynb", content=notebook(path)))
    for file in files:
        chapter = f"../tutorials/zh/{file.name}.md"
        file.edit_uri = chapter if file.generated_by else f"zh/{file.src_uri}"
        file.url = f"zh/{file.url}".replace("/./", "/")
    for path in site.rglob("*.*"):
        uri = path.relative_to(site).as_posix()
        source = source_of(uri) if path.name == "index.html" else uri
        if path.is_file() and not uri.startswith("zh/") and not files.get_file_from_path(source):
            files.append(English(source, str(site), str(site), True, dest_uri=uri))


def on_page_markdown(markdown, page, config, files):
    """As in English; the headings have the ids of the English page, so that links to them hold in both."""
    cards = [hooks.card(path.stem, translated(path, mark="")) for path in hooks.chapters()]
    markdown = markdown.replace("<!-- chapters -->", "\n".join(cards))
    page.meta.setdefault("description", hooks.described(joined(markdown)) or config.site_description)
    markdown = hooks.on_page_markdown(markdown, page, config, files, WORDS)
    source = english(config) / english_file(page.file.src_uri).dest_uri
    ids = re.findall(r'<h[1-6] id="([^"]+)"', source.read_text(encoding="utf-8"))
    markdown, _, only_here = markdown.partition(ONLY_HERE)
    text, count = with_ids(markdown, ids)
    if count != len(ids):
        log.warning(f"zh/{page.file.src_uri} has {count} headings, the English page {len(ids)}")
    return text + only_here


def with_ids(markdown: str, ids: list[str]) -> tuple[str, int]:
    """The headings with these ids, and how many headings there are."""
    count = 0

    def given(found: re.Match) -> str:
        nonlocal count
        if not found["heading"]:
            return found[0]
        count += 1
        return f"{found['heading']} {{ #{ids[count - 1]} }}" if count <= len(ids) else found[0]

    fenced, heading = r"^(?P<indent> *)(?P<ticks>`{3,}).*?^(?P=indent)(?P=ticks)\s*?$", r"^(?P<heading> *#{1,6} .+?)"
    pattern = rf"{fenced}|{heading}(?: *\{{ *#[\w-]+ *\}})? *$"
    return re.sub(pattern, given, markdown, flags=re.S | re.M), count


WIDE = "\u3000-\u303f\uff00-\uffef“”‘’…—"  # punctuation as wide as a character
HAN = f"\u3400-\u9fff{WIDE}"


def joined(text: str) -> str:
    """Chinese has no spaces: a line that is broken between its characters goes on without one."""
    gap = r"(?:</?\w[^>]*>)*\n(?:</?\w[^>]*>)*"
    broken = rf"(?<=[{HAN}]){gap}(?=[{HAN}])|(?<=[{WIDE}]){gap}(?=\S)|(?<=\S){gap}(?=[{WIDE}])"
    return re.sub(
        f"<pre.*?</pre>|{broken}",
        lambda found: found[0] if found[0].startswith("<pre") else found[0].replace("\n", ""),
        text,
        flags=re.S,
    )


def upright(content: str) -> str:
    """Chinese has no italics: emphasis with Chinese in it gets a class, and its Latin letters stay upright, too."""
    return re.sub("<em>(?=(?:(?!</em>).)*[\u3400-\u9fff])", '<em class="chinese">', content, flags=re.S)


def on_page_content(content, page, config, files):
    """Images with their sizes; lines joined; emphasis upright; links to English pages marked."""
    content = upright(joined(hooks.on_page_content(content, page, config, files)))

    def marked(found: re.Match) -> str:
        goal = posixpath.normpath(posixpath.join(page.url, found["goal"]))
        if goal.split("/")[0] == "zh" or not (english(config) / goal / "index.html").is_file():
            return found[0]
        return f'<a hreflang="en"{found[0][2 : -len("</a>")]}{ENGLISH}</a>'

    return re.sub(r'<a [^>]*?href="(?!\w+:)(?P<goal>[^"#?]+)[^>]*>(?!<img).*?</a>', marked, content, flags=re.S)


@event_priority(-100)  # after the search plugin has written its index
def on_post_page(output, page, config):
    """Formulas, as in English."""
    return hooks.on_post_page(output, page, config)


def on_post_build(config):
    hooks.tidy(Path(config.site_dir) / "search" / "search_index.json", below="zh/")


def main(names: list[str]) -> None:
    for path in hooks.chapters():
        known, asked = translations(path), sources(path)
        if not known and path.stem not in names:
            continue
        for marker, text in (asked[key] for key in asked if key not in known):
            print(f"{marker}\n{text}\n")
        for stale in known.keys() - asked.keys():
            print(f"tutorials/zh/{path.stem}.md: {stale} is no text of the chapter any more", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
