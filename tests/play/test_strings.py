"""What the demos say: one file a language, the same sentences with the same numbers in each, and no text elsewhere."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "docs" / "javascripts"
STRINGS = SCRIPTS / "play" / "strings.js"
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: the strings of the demos were not read")

# Every string by its path, {"home.clock": {"kind": "2", "said": [...]}}: kind is "text" or the number of arguments.
READ = """
const read = (value, path) => {
  if (typeof value === "object") return Object.entries(value).flatMap(([key, inner]) => read(inner, [...path, key]));
  if (typeof value === "string") return [[path.join("."), { kind: "text", said: [value] }]];
  const numbers = [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0], [12, 23, 34, 45, 56, 67, 78, 89]];
  return [[path.join("."), { kind: String(value.length), said: numbers.map((each) => value(...each)) }]];
};
const { strings } = await import(process.argv[1]);
console.log(JSON.stringify(Object.fromEntries(read(strings, []))));
"""


def read(language: str) -> dict[str, dict]:
    file = STRINGS.with_name(f"strings.{language}.js").as_uri()
    command = [NODE, "--input-type=module", "-e", READ, "--", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))


@needs_node
def test_both_languages_say_the_same_with_the_same_numbers():
    english, chinese = read("en"), read("zh")
    assert len(english) > 150
    assert {key: text["kind"] for key, text in english.items()} == {key: text["kind"] for key, text in chinese.items()}
    compared = 0
    for key, text in english.items():
        for said, other in zip(text["said"], chinese[key]["said"], strict=True):
            assert numbers(said) == numbers(other), f"{key}: {said!r} and {other!r}"
            compared += len(numbers(said))
    assert compared > 300


# The same in both languages: names, and what puts names and numbers together without a word.
SAME = {"network.logitsRow", "ssa.popcount", "ssa.token", "ssa.weightOf", "why.part"}
WORDLESS = SAME | {"network.comma", "network.logitsNote", "ssa.cell", "ssa.rowOfToken"}


@needs_node
def test_every_chinese_string_is_chinese():
    english, chinese = read("en"), read("zh")
    assert {key for key, text in chinese.items() if text == english[key]} == SAME
    han = re.compile("[\u4e00-\u9fff]")
    assert {key for key, text in chinese.items() if not all(map(han.search, text["said"]))} == WORDLESS


# No text is left in the code

# A comment, a class attribute, an error for programmers: not shown. Or a literal, which is looked at.
PIECES = re.compile(
    r"//[^\n]*|/\*.*?\*/|class: (?:\"[^\"]*\"|`[^`]*`)|new Error\((?:\"[^\"]*\"|`[^`]*`)"
    r"|(?:\"((?:[^\"\\\n]|\\.)*)\"|`((?:[^`\\]|\\.)*)`)",
    re.S,
)
SENTENCE = re.compile(r"[A-Za-z]{2,}[,:;.]? [a-z]{2,}|^[A-Z][a-z]+")  # two words, or one with a capital
NO_TEXT = re.compile(
    r"^(Arrow\w+|Escape|Backspace|Home)$"  # keys of a keyboard
    r"|^[.\[][\w.\[\]-]|^button, a\[href"  # CSS selectors
    r"|^(bold )?\d+px sans-serif$"
    r"|^\(prefers-reduced-motion: reduce\)$|^meets fired$"  # a query, and a class
    r"|^scores, block \$\{\w+\}$"  # an attribute for tests and style sheets
)


def sentences(code: str) -> list[str]:
    """Literals of JavaScript that look like English."""
    literals = [found[1] or found[2] or "" for found in PIECES.finditer(code)]
    shown = [text for text in literals if not NO_TEXT.search(text)]
    return [text for text in shown if SENTENCE.search(re.sub(r"\$\{[^}]*\}", "0", text))]


def test_no_english_is_left_in_the_code():
    assert sentences('h("p", { class: "play-note big" }, "It is copied."); // Not this') == ["It is copied."]
    assert sentences("said.textContent = `${n} spikes in T = ${steps} steps`;") == ["${n} spikes in T = ${steps} steps"]
    assert len(sentences(STRINGS.with_name("strings.en.js").read_text())) > 120  # most of the texts themselves
    files = [file for file in SCRIPTS.rglob("*.js") if not re.search(r"strings\.(en|zh)\.js", file.name)]
    assert len(files) > 12
    assert {file.name: found for file in files if (found := sentences(file.read_text()))} == {}


# In a browser

# Names that stay in a Chinese text, and the parts of layer names.
NAMES = """AND Esc Home JPEG PNG SSA attn blocks hidden logit logits mlp ms out popcount proj rpe softmax sps th
token""".split()


@pytest.mark.parametrize("name", ["neuron", "ssa", "digit", "photo", "events"])
def test_a_chinese_page_says_nothing_in_english(site, browser, name):
    """And it fetches no other language; an English page does not either."""
    page = browser.new_page(reduced_motion="reduce")
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url.split("/")[-1]))
    page.goto(f"{site}{name}/")
    page.wait_for_selector("[data-play][data-ready]")
    assert "strings.en.js" in fetched and "strings.zh.js" not in fetched
    fetched.clear()

    def in_chinese(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'<html lang="en"', '<html lang="zh"', answer.text(), count=1))

    page.route(f"**/play/{name}/", in_chinese)
    page.goto(f"{site}{name}/")
    page.wait_for_selector("[data-play][data-ready]")
    assert "strings.zh.js" in fetched and "strings.en.js" not in fetched
    said = page.evaluate(
        """() => [...document.querySelectorAll('[data-play], [data-play] *')]
        .filter((element) => !element.closest('[data-play=predict]'))  // its text is that of the page
        .flatMap((element) => [
            ...[...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data),
            ...['aria-label', 'aria-valuetext', 'title', 'alt'].map((name) => element.getAttribute(name) ?? ''),
        ]).filter((text) => text.trim())"""
    )
    page.close()
    assert sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in said) > 20
    words = {word for text in said for word in re.findall("[A-Za-z]{2,}", text)}
    assert words <= set(NAMES), words - set(NAMES)
