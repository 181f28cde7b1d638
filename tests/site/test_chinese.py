"""The Chinese texts: nothing is missing or stale; numbers, formulas, code and links are those of the English ones."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install '.[docs]')")
ROOT = Path(__file__).parents[2]
DOCS, TUTORIALS = ROOT / "docs", ROOT / "tutorials"
with patch.object(sys, "path", [str(DOCS), *sys.path]), patch.object(sys, "dont_write_bytecode", True):
    import chinese
    import hooks

CHAPTERS = [path for path in hooks.chapters() if (TUTORIALS / "zh" / f"{path.stem}.md").exists()]
PAGES = sorted(path.relative_to(DOCS / "zh").as_posix() for path in (DOCS / "zh").rglob("*.md"))
# Words of English that Chinese may write in digits; digits of the English stay digits.
WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)} | {"first": "1", "second": "2", "third": "3"}
NUMBERS |= {"ones": "1", "zeros": "0", "once": "1", "twice": "2", "hundred": "100", "thousand": "1000"}


def parts(text: str) -> dict[str, Counter]:
    """What a translation leaves as it is."""
    found = {name: Counter() for name in ("code", "formulas", "links", "HTML", "comments", "headings", "numbers")}

    def take(name: str, pattern: str, value=lambda match: match[0], left=lambda match: " ") -> None:
        nonlocal text

        def cut(match: re.Match) -> str:
            found[name][" ".join(value(match).split())] += 1
            return left(match)

        text = re.sub(pattern, cut, text, flags=re.S | re.M)

    def formula(match: re.Match) -> str:  # the words in it are translated, and the comma before them
        return re.sub(r",?\s*\\text\{.*?\}", r" \\text{}", match[0])

    take("code", r"^( *)(`{3,}).*?^\1\2 *$")
    take("code", r"(`+)(?!`).+?(?<!`)\1(?!`)")
    take("formulas", r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)", formula)
    take("formulas", r"(?<![\\\w$])\$(?=\S)[^$]+?(?<=\S)\$(?!\d)", formula)
    take("comments", r"<!--.*?-->")
    take("links", r"\]\(([^()\s]+(\([^()]*\))?)\)", lambda match: match[1])
    take("links", r"https?://[^\s)>，。]+")
    words = r'(alt|aria-label|title|summary|content)="([^"]*)"'  # these are translated: only their numbers stay
    take(
        "HTML",
        r"<(/?[a-z][^>]*)>",
        lambda match: re.sub(words, r"\1", match[1]),
        lambda match: " ".join(["", *(said for _, said in re.findall(words, match[1])), ""]),
    )
    take("headings", r"^ *(#{1,6}) ", lambda match: match[1])
    text = re.sub(r"\{ *([#.][a-z]|\w+=)[^}\n]*\}", " ", text)  # attributes: { #slug }, { .md-button }
    found["numbers"] = Counter(re.findall(r"\d+(?:[.,]\d+)*", text))
    return found


def compare(english: str, translated: str, name: str) -> None:
    source, goal = parts(english), parts(translated)
    for kind in source:
        missing, more = source[kind] - goal[kind], goal[kind] - source[kind]
        if kind == "numbers":
            spelt = Counter(NUMBERS[word] for word in re.findall(r"[a-z]+", english.lower()) if word in NUMBERS)
            more -= spelt
        assert not missing and not more, f"{name}: {kind} that only the English has: {missing}; the Chinese: {more}"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_translated_as_it_is_now(path):
    known, asked = chinese.translations(path), chinese.sources(path)
    missing = [f"{marker} {text[:60]}" for key, (marker, text) in asked.items() if key not in known]
    stale = [f"{key} {text[:60]}" for key, text in known.items() if key not in asked]
    assert not missing, f"tutorials/zh/{path.stem}.md lacks (python docs/chinese.py prints them): {missing}"
    assert not stale, f"tutorials/zh/{path.stem}.md translates what the chapter does not say any more: {stale}"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_the_numbers_formulas_code_and_links_of_the_english_one(path):
    known = chinese.translations(path)
    for key, (marker, text) in chinese.sources(path).items():
        if key in known:
            compare(text, known[key], f"tutorials/zh/{path.stem}.md, {marker}")
            assert re.search("[\u4e00-\u9fff]", known[key]), f"{path.stem}, {marker}: no Chinese"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_numbers_formulas_code_and_links_of_the_english_one(page):
    translated = (DOCS / "zh" / page).read_text().split(chinese.ONLY_HERE)[0]
    compare((DOCS / page).read_text(), translated, f"docs/zh/{page}")


def test_the_readme_says_what_the_english_one_says():
    """Comments of code are translated here; its lines and all numbers are the same."""
    english, translated = (ROOT / "README.md").read_text(), (ROOT / "README.zh.md").read_text()
    assert english.startswith("English | [中文](README.zh.md)\n\n")
    assert translated.startswith("[English](README.md) | 中文\n\n")
    english, translated = (text.partition("\n\n")[2] for text in (english, translated))
    comments = [re.findall(" +# .*", text) for text in (english, translated)]
    for comment, other in zip(*comments, strict=True):
        assert re.findall(r"\d+", comment) == re.findall(r"\d+", other), other
    english, translated = (re.sub(" +# .*", "", text) for text in (english, translated))
    compare(english, translated, "README.zh.md")
    commands = [re.findall("^ {4}\\w.+", text, flags=re.M) for text in (english, translated)]
    assert commands[0] == commands[1]


def test_one_word_for_one_term():
    """No text has a word that the last table of the glossary says is not used."""
    page = DOCS / "zh" / "glossary.md"
    rows = re.findall(r"^\|.*\|.*\| *(.*?) *\|.*\|$", page.read_text().split("## 有分歧的译名")[1], flags=re.M)
    assert rows[0] == "不用"
    words = [word for word in rows[2:] if word]
    files = [ROOT / "README.zh.md", *DOCS.glob("zh/**/*.md"), *TUTORIALS.glob("zh/*.md")]
    texts = {path: path.read_text() for path in files}
    texts[page] = texts[page].split("## 有分歧的译名")[0].replace("### token（词元）", "")
    found = [f"{path.relative_to(ROOT)}: {word}" for path, text in texts.items() for word in words if word in text]
    assert len(words) > 10 and not found


def test_there_are_pages_and_chapters():
    assert {"index.md", "install.md", "learn/index.md", "glossary.md", "faq.md"} <= set(PAGES)
    assert {path.stem[:2] for path in CHAPTERS} >= {"00", "01", "05", "08"}


def test_what_the_comparison_sees():
    english = "# A\n\nFour of 12 spikes, $a = 1$, `x = 2` and [b](c.md#d).\n\n```sh\nmake # 3\n```\n<p data-x='5'>\n"
    chinese = english.replace("Four of 12 spikes", "12 个脉冲中的 4 个").replace("# A", "# 甲 { #a }")
    compare(english, chinese, "same")
    changes = [("12", "13"), ("12 ", ""), ("a = 1", "a = 2"), ("x = 2", "x = 3"), ("c.md#d", "c.md#e"), ("# 3", "# 4")]
    for before, after in [*changes, ("'5'", "'6'"), ("# 甲", "## 甲"), ("4 个", "4 个，5 个")]:
        with pytest.raises(AssertionError):
            compare(english, chinese.replace(before, after), "changed")


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A chapter of three texts and a picture, and the file of its translation."""
    monkeypatch.setattr(hooks, "TUTORIALS", tmp_path)
    (tmp_path / "zh").mkdir()
    drawn = {"data": {"image/png": ""}, "metadata": {"image/png": {"alt": "A picture"}}}
    said = {"output_type": "stream", "text": [hooks.PREDICT_LINE, "3\n"]}
    cells = [
        {
            "cell_type": "markdown",
            "source": ["# 00 · Title\n", "\n", "*Run time 7 s*\n", "\n", "Text."],
            "metadata": {},
        },
        {"cell_type": "markdown", "source": ["## Next\n", "More."], "metadata": {}},
        {"cell_type": "code", "source": ["x"], "metadata": {}, "outputs": [drawn, said]},
    ]
    (tmp_path / "00_x.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    return tmp_path / "00_x.ipynb", tmp_path / "zh" / "00_x.md"


def test_cells_are_found_by_what_they_say(chapter, capsys):
    path, file = chapter
    assert [cell["source"] for cell in chinese.translated(path)] == [cell["source"] for cell in hooks.cells(path)]
    chinese.main(["00_x"])
    skeleton = capsys.readouterr().out
    assert chinese.key("*Run time 7 s*") == chinese.key("\n*Run time 12 s*") != chinese.key("*Run time*, 7 s")
    file.write_text(
        skeleton.replace("Title", "标题").replace("## Next\nMore.", "## 下一节\n更多。").replace("A picture", "一幅图")
    )
    first, second, code = chinese.translated(path)
    assert first["source"].startswith("# 00 · 标题\n") and second["source"] == "## 下一节\n更多。"
    assert code["outputs"][0]["metadata"]["image/png"]["alt"] == "一幅图" and code["source"] == "x"
    made = json.loads(chinese.notebook(path))
    assert made["nbformat"] == 4 and made["cells"][2]["outputs"][1]["text"] == [chinese.PREDICT_LINE, "3\n"]
    chinese.main([])
    assert capsys.readouterr() == ("", "")


def test_a_stale_cell_is_shown_in_english_and_listed(chapter, capsys):
    path, file = chapter
    chinese.main(["00_x"])
    file.write_text(capsys.readouterr().out.replace("## Next", "## 下一节"))
    path.write_text(path.read_text().replace("More.", "Other."))
    assert chinese.translated(path)[1]["source"] == chinese.NOT_TRANSLATED + "## Next\nOther."
    chinese.main([])
    printed = capsys.readouterr()
    assert printed.out == f"<!-- {chinese.key('## Next' + chr(10) + 'Other.')} -->\n## Next\nOther.\n\n"
    assert "00_x.md" in printed.err and len(printed.err.splitlines()) == 1
    path.write_text(path.read_text().replace("Text.", "Words."))
    assert chinese.translated(path)[0]["source"].startswith(f"# 00 · Title\n\n{chinese.NOT_TRANSLATED}*Run time 7 s*")


def test_lines_of_chinese_are_joined_and_headings_keep_the_ids():
    page = "<p>一行，\n<em>两行</em>\n三行 a\nb 四\n`c`：\nd</p>\n<pre>一\n二</pre>"
    assert chinese.joined(page) == "<p>一行，<em>两行</em>三行 a\nb 四\n`c`：d</p>\n<pre>一\n二</pre>"
    text = "<em>一 CPU</em>, <em>tie</em>，<em><a>T</a> 步</em>"
    assert chinese.upright(text) == (
        '<em class="chinese">一 CPU</em>, <em>tie</em>，<em class="chinese"><a>T</a> 步</em>'
    )
    text = "# 甲\n\n````sh\n# no\n```\n````\n\n    ## 乙 { #old }\n"
    assert chinese.with_ids(text, ["a", "b"]) == (
        text.replace("甲", "甲 { #a }").replace("{ #old }", "{ #b }"),
        2,
    )
    assert chinese.with_ids(text, ["a"])[1] == 2
