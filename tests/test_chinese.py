"""The Chinese edition says what the English one says: the same numbers, code, formulas, links and anchors, and one word
for one term."""

import re
from collections import Counter
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify_unicode

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.zh.md", *sorted(ROOT.glob("docs/zh/**/*.md")), *sorted(ROOT.glob("tutorials/zh/*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def numbers(text: str) -> Counter:
    return Counter(re.findall(r"\d[\d.,]*\d|\d", text))


def code(text: str) -> list[str]:
    """What can be copied and run, line by line: comments are translated."""
    blocks = re.findall(r"^ {4}\S[^\n]*|```.*?```", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.splitlines()]


def links(text: str) -> Counter:
    return Counter(re.findall(r"\]\((.+?)\)", text))


def test_the_readme_is_the_same_in_both_languages():
    english, chinese = read("README.md"), read("README.zh.md")
    assert english.startswith("English | [中文](README.zh.md)\n\n")
    assert chinese.startswith("[English](README.md) | 中文\n\n")
    english, chinese = (text.split("\n\n", 1)[1] for text in (english, chinese))
    assert code(english) == code(chinese)
    assert numbers(english) == numbers(chinese)
    assert links(english) == links(chinese)
    assert formulas(english) == formulas(chinese)


def entries(page: str) -> dict[str, str]:
    """The entries of a glossary by their anchors; a translated head has both terms and the anchor."""
    heads, texts = (re.split(r"^### (.+)\n", page.split("\n## ")[2], flags=re.MULTILINE)[n::2] for n in (1, 2))
    given = [re.search(r"/ .+ \{ #(.+) \}$", head) for head in heads]
    anchors = [found[1] if found else slugify_unicode(head, "-") for head, found in zip(heads, given, strict=True)]
    return dict(zip(anchors, texts, strict=True))


def formulas(text: str) -> Counter:
    """What stands between \\( \\) or backticks."""
    return Counter(" ".join(found.split()) for found in re.findall(r"\\\(.+?\\\)|`.+?`", text, flags=re.DOTALL))


def test_the_glossary_has_the_same_entries_in_both_languages():
    english, chinese = read("docs/glossary.md"), read("docs/zh/glossary.md")
    ours, theirs = entries(english), entries(chinese)
    assert list(ours) == list(theirs)
    for anchor, entry in ours.items():
        assert formulas(entry) == formulas(theirs[anchor]), anchor
    symbols, translated = (text.split("\n## ")[1] for text in (english, chinese))
    for row, other in zip(re.findall(r"^\|.+", symbols, re.M), re.findall(r"^\|.+", translated, re.M), strict=True):
        assert formulas(row) == formulas(other) and links(row) == links(other)


def rejected() -> list[str]:
    """The words that the glossary's last table names as not used."""
    table = read("docs/zh/glossary.md").split("{ #disputed-terms }")[1]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.+", table, re.M)]
    assert rows[0][2] == "不用"
    return [row[2] for row in rows[2:] if row[2]]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_word_for_one_term(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "glossary.md":  # names token's translation, and in its last table the words that are not used
        text = text.split("{ #disputed-terms }")[0].replace("### token（词元）", "")
    assert not [word for word in rejected() if word in text]
