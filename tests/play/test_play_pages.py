"""The Play pages, tried by a browser: every demo answers, and its numbers are those of the package."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import spikformer_edu as se
from spikformer_edu.data import info
from spikformer_edu.export.js import in_half, on_grid

pytestmark = pytest.mark.slow  # a browser opens a page for every test

HERE = Path(__file__).parent
PAGES = ["", "neuron", "ssa", "digit", "photo", "events"]


def set_range(scope, name: str, value: float) -> None:
    """Moves a slider as a person would: the value, then the event."""
    scope.locator(f"input[type=range][name={name}]").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def choose(scope, name: str, value: str) -> None:
    scope.locator(f"fieldset[data-name={name}] input[value='{value}']").check()


# What all pages have in common


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_page_fits_and_every_control_has_a_name(visit, name, width, dark):
    page = visit(name, width, dark)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    attributes = page.evaluate(
        "[...document.querySelectorAll('[data-play] *')].flatMap(element => element.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on")]  # no inline event handlers
    nameless = page.evaluate(
        """[...document.querySelectorAll('[data-play] :is(button, input, select, canvas, svg, [tabindex])')]
        .filter(e => !e.hasAttribute('aria-hidden'))
        .filter(e => e.offsetParent !== null && !e.closest('[role=img]:not(canvas, svg)'))
        .filter(e => !['aria-label', 'aria-labelledby'].some(a => e.getAttribute(a)))
        .filter(e => !e.textContent.trim() && !e.labels?.length).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    # The colours of text and page are apart in both schemes: WCAG AA asks for 4.5 to 1.
    texts = ".play-said, .play-equation, .play-note, [data-play] label, [data-play] button.play-button"
    assert page.evaluate(CONTRAST, texts) >= 4.5


CONTRAST = """selector => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = colour => colour.map(c => linear(c / 255))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const paper = numbers(getComputedStyle(document.body).backgroundColor);
    return Math.min(...[...document.querySelectorAll(selector)].map(element => {
        const [r, g, b, a = 1] = numbers(getComputedStyle(element).color);
        const seen = [r, g, b].map((c, i) => a * c + (1 - a) * paper[i]);
        const [high, low] = [light(seen), light(paper)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
    }));
}"""


def test_focus_is_visible(visit):
    page = visit("ssa")
    page.locator("[data-cell='Q-0-0']").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.cell") == "Q-0-1"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


# The neuron


def lif(current: list[float], beta: float = 0.5, threshold: float = 1.0) -> tuple[list[int], list[float]]:
    """Spikes and membrane potentials H of the package's neuron."""
    neuron, seen = se.LIF(tau=1 / (1 - beta), v_threshold=threshold), []
    neuron.on_membranes = seen.append
    spikes = neuron(torch.tensor(current)[:, None])
    return spikes[:, 0].int().tolist(), (seen[0][:, 0] * (1 - beta)).tolist()


def shown(page) -> tuple[list[int], list[float]]:
    picture = page.locator(".play-trace").first
    return [int(spike) for spike in picture.get_attribute("data-spikes")], json.loads(
        picture.get_attribute("data-membrane")
    )


def check_trace(page, current, **settings):
    spikes, membrane = shown(page)
    expected, potentials = lif(current, **settings)
    assert spikes == expected
    assert membrane == pytest.approx(potentials, abs=1e-6)


def test_neuron_is_the_package_s(visit):
    page = visit("neuron")
    check_trace(page, [1.5] * 16)  # the paper's values come first
    for level in (0.0, 0.95, 1.0, 1.05, 2.0, 3.3):
        set_range(page, "level", level)
        check_trace(page, [level] * 16)
    set_range(page, "steps", 24)
    for beta, threshold in ((0.8, 0.6), (0, 1), (0.95, 0.35)):
        set_range(page, "beta", beta)
        set_range(page, "threshold", threshold)
        check_trace(page, [3.3] * 24, beta=beta, threshold=threshold)
    choose(page, "kind", "pulses")
    check_trace(page, [3.3 if t % 6 < 2 else 0.0 for t in range(24)], beta=0.95, threshold=0.35)
    page.locator("[data-action=paper]").click()
    check_trace(page, [3.3] * 24)
    total = sum(lif([3.3] * 24)[0])
    assert (
        page.locator(".play-said").first.inner_text() == f"{total} spikes in T = 24 steps: firing rate {total / 24:.3g}"
    )


def test_tie(visit):
    page = visit("neuron")
    page.locator("[data-action=tie]").click()
    assert shown(page) == ([1] * 16, [1.0] * 16)
    assert "≥ 1: spike" in page.locator(".play-equation").first.inner_text()
    choose(page, "tie", ">")
    assert shown(page)[0] == [0, 1] * 8


def test_resets(visit):
    page = visit("neuron")
    set_range(page, "level", 2.6)
    for reset in ("soft", "none"):
        choose(page, "reset", reset)
        v, spikes, membrane = 0.0, [], []
        for _ in range(16):
            h = 0.5 * v + 0.5 * 2.6
            spikes.append(int(h >= 1))
            membrane.append(h)
            v = h - (1 if h >= 1 and reset == "soft" else 0)
        assert shown(page)[0] == spikes
        assert shown(page)[1] == pytest.approx(membrane, abs=1e-6)


def test_drawn_input(visit):
    page = visit("neuron")
    choose(page, "kind", "drawn")
    box = page.locator(".play-pen").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"] / 16, box["y"] + box["height"] - 1)
    page.mouse.down()
    for t in range(16):
        page.mouse.move(box["x"] + (t + 0.5) * box["width"] / 16, box["y"] + box["height"] * 0.25)
    page.mouse.up()
    page.locator(".play-pen").focus()
    for _ in range(5):
        page.keyboard.press("ArrowUp")
    last = page.locator(".play-pen").get_attribute("aria-valuetext")
    page.keyboard.press("ArrowLeft")
    before = page.locator(".play-pen").get_attribute("aria-valuetext")
    assert last.startswith("t = 15") and before.startswith("t = 14")
    rows = page.evaluate(
        "[...document.querySelectorAll('[data-play] tbody tr')].map(r => [...r.cells].map(c => Number(c.textContent)))"
    )
    current = [row[1] for row in rows]
    assert 2.5 < current[14] < 3.5 and current[15] == pytest.approx(current[14] + 0.5, abs=1e-6)
    check_trace(page, current)


# Attention by hand


def bits(page, name: str) -> torch.Tensor:
    cells = page.locator(f"[data-cell^='{name}-']").evaluate_all(
        "cells => cells.map(cell => [cell.getAttribute('aria-pressed'), cell.textContent, cell.ariaLabel])"
    )
    if name in "QKV":
        values = [float(pressed == "true") for pressed, _, _ in cells]
    elif name == "out":
        values = [float(label.endswith("spike")) for _, _, label in cells]
    else:
        values = [float(text) for _, text, _ in cells]
    return torch.tensor(values).view(8, 8)


def check_attention(page, scale: float = 0.125, threshold: float = 0.5, order: str = "first"):
    q, k, v = (bits(page, name) for name in "QKV")
    current = (q @ k.T) @ v * scale
    assert torch.equal(bits(page, "out"), se.LIF(v_threshold=threshold)(current[None])[0])
    if order == "first":
        assert torch.equal(bits(page, "counts"), q @ k.T)
    else:
        assert torch.equal(bits(page, "pairs"), k.T @ v)
    return q, k, v


def test_attention_is_the_package_s(visit):
    page = visit("ssa")
    check_attention(page)
    for preset in ("random", "ones", "token", "random", "clear", "random"):
        page.locator(f"[data-preset={preset}]").click()
        check_attention(page)
    set_range(page, "rate", 0.3)
    check_attention(page)
    for scale, threshold in ((0.25, 0.5), (0.5, 1), (0.0625, 0.25)):
        page.select_option("select[name=scale]", str(scale))
        page.select_option("select[name=threshold]", str(threshold))
        check_attention(page, scale, threshold)
    choose(page, "order", "second")
    check_attention(page, 0.0625, 0.25, "second")
    assert "0 of 64" in page.locator(".play-cost").inner_text()


def test_attention_of_the_entry_under_the_pointer(visit):
    page = visit("ssa")
    q, k, v = check_attention(page)
    both = (q[4] * k[6]).sum()
    page.locator("[data-cell='counts-4-6']").hover()
    said = page.locator(".play-detail").inner_text()
    assert f"popcount = {both:.0f}, times s: {both:.0f} · 0.125 = {both * 0.125:g}" in said
    ssa, softmax = (
        json.loads(page.locator(f".play-weights.{kind}").get_attribute("data-values")) for kind in ("ssa", "softmax")
    )
    assert ssa == ((q @ k.T)[4] * 0.125).tolist()
    assert torch.tensor(softmax) == pytest.approx(((q @ k.T)[4] / 8**0.5).softmax(0), abs=1e-6)

    page.locator("[data-cell='out-4-6']").focus()  # by keyboard
    total = ((q @ k.T) @ v)[4, 6]
    fires = "≥ 0.5, the threshold: spike" if total * 0.125 / 2 >= 0.5 else "< 0.5, the threshold: no spike"
    said = page.locator(".play-detail").inner_text()
    assert f"sum = {total:.0f}, times s" in said and f"H = X / τ = {total * 0.125 / 2:.4g} {fires}" in said

    page.locator("[data-cell='Q-4-0']").click()
    flipped, _, _ = check_attention(page)
    assert (flipped - q).abs().sum() == 1 and flipped[4, 0] != q[4, 0]
    page.locator("[data-cell='V-0-0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    _, _, changed = check_attention(page)
    assert (changed - v).abs().sum() == 1 and changed[1, 0] != v[1, 0]


def test_attention_counts_its_additions(visit):
    page = visit("ssa")
    q, k, v = (bits(page, name).int().tolist() for name in "QKV")

    def additions(first, second):  # zeros are skipped: an addition for every pair of entries that are not zero
        return sum(1 for i in range(8) for j in range(8) for c in range(8) if first[i][j] and second[j][c])

    def product(first, second):
        return [[sum(first[i][j] * second[j][c] for j in range(8)) for c in range(8)] for i in range(8)]

    k_transposed = [list(row) for row in zip(*k, strict=True)]
    expected = {
        "first": additions(q, k_transposed) + additions(product(q, k_transposed), v),
        "second": additions(k_transposed, v) + additions(q, product(k_transposed, v)),
    }
    for order, number in expected.items():
        cells = page.locator(f"tr[data-order={order}] td").all_inner_texts()
        assert cells == ["1,024", str(number)]
    page.select_option("select[name=tokens]", "196")
    page.select_option("select[name=width]", "64")
    said = page.locator(".play-cost").inner_text()
    assert f"{2 * 196**2 * 64:,}" in said and f"{2 * 196 * 64**2:,}" in said and "3.06 times as many" in said


def test_on_a_phone_one_matrix_is_shown_with_cells_for_a_finger(visit):
    page = visit("ssa", 390)
    choose(page, "order", "second")
    for name in ("Q", "K", "V", "pairs", "out"):
        choose(page, "matrix", name)
        shown = page.locator(".play-matrix").evaluate_all("all => all.filter(e => e.offsetParent).length")
        assert shown == 1
        box = page.locator(f"[data-cell='{name}-7-7']").bounding_box()
        assert box["width"] >= 24 and box["height"] >= 24
    before = bits(page, "Q")
    choose(page, "matrix", "Q")
    page.locator("[data-cell='Q-3-5']").click()
    assert (bits(page, "Q") - before).abs().sum() == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.play-detail')).position") == "sticky"


def test_both_lists_of_weights_have_one_scale(visit):
    page = visit("ssa")
    page.select_option("select[name=scale]", "0.5")
    page.locator("[data-preset=ones]").click()
    shares = [
        page.locator(f".play-weights.{kind} .bar").first.evaluate(
            "bar => Number(bar.style.getPropertyValue('--share'))"
        )
        for kind in ("ssa", "softmax")
    ]
    assert shares == pytest.approx([1, 1 / 8 / 4])  # weights 4 and 1/8
    said = page.locator(".play-cost").inner_text()
    assert "Softmax cannot use that order" in said
    page.select_option("select[name=tokens]", "8")
    assert "Softmax uses that order too" in page.locator(".play-cost").inner_text()


# The guided experiments


def test_experiments(visit):
    """What the three explanations claim is what the demos show."""
    page = visit("")
    predictions, whys = page.locator("[data-play=predict]"), page.locator("details.question")
    assert predictions.count() == whys.count() == 3

    first = page.locator("[data-play=neuron]")
    for level in (2, 4):
        set_range(first, "level", level)
        assert "12 spikes in T = 12" in first.inner_text()
    for level in (1, 0.5):
        set_range(first, "level", level)
        assert "0 spikes in T = 12" in first.inner_text()

    second = page.locator("[data-play=ssa]").nth(0)
    second.locator("[data-cell='counts-5-0']").hover()
    ssa, softmax = (
        json.loads(second.locator(f".play-weights.{kind}").get_attribute("data-values")) for kind in ("ssa", "softmax")
    )
    assert ssa == [0] * 8 and softmax == pytest.approx([1 / 8] * 8)
    second.locator("[data-cell='out-2-2']").hover()
    assert "H = X / τ = 0.5 ≥ 0.5" in second.inner_text()

    third = page.locator("[data-play=ssa]").nth(1)
    for _ in range(3):
        third.locator("[data-preset=random]").click()
        before = third.locator("[data-cell^=out-]").evaluate_all("cells => cells.map(cell => cell.ariaLabel)")
        choose(third, "order", "second")
        assert third.locator("[data-cell^=out-]").evaluate_all("cells => cells.map(cell => cell.ariaLabel)") == before
        assert "0 of 64" in third.inner_text()
        choose(third, "order", "first")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_predictions(visit, number):
    page = visit("")
    prediction = page.locator("[data-play=predict]").nth(number)
    answer = int(prediction.get_attribute("data-answer")) - 1
    prediction.locator("input").nth((answer + 1) % 3).check()
    assert "Noted" in prediction.inner_text()
    page.locator("details.question > summary").nth(number).click()
    prediction.get_by_text("It was").wait_for()
    prediction.locator("input").nth(answer).check()
    assert "Your prediction was right." in prediction.inner_text()


# The drawn digit


def draw(page, strokes: list) -> None:
    """Draws with a real mouse; strokes are in the units of the drawing area, 280 along a side."""
    page.locator(".play-pad").evaluate("pad => pad.scrollIntoView({block: 'center'})")
    box = page.locator(".play-pad").bounding_box()
    spot = [
        [(box["x"] + x / 280 * box["width"], box["y"] + y / 280 * box["height"]) for x, y in path] for path in strokes
    ]
    for path in spot:
        page.mouse.move(*path[0])
        page.mouse.down()
        for point in path[1:]:
            page.mouse.move(*point)
        page.mouse.up()


def test_drawn_digits_are_read(visit):
    """Drawings in several hands, none of them used for any choice: at least 90 % are read right."""
    page = visit("digit")
    drawings = json.loads((HERE / "strokes.json").read_text())
    assert len(drawings) >= 30 and all(sum(d["digit"] == digit for d in drawings) >= 3 for digit in range(10))
    wrong = []
    for drawing in drawings:
        page.locator("[data-action=clear]").click()
        draw(page, drawing["strokes"])
        said = page.locator(".play-answer").inner_text()
        if said != f"Reads {drawing['digit']}":
            wrong.append(f"{drawing['digit']} ({drawing['style']}): {said}")
    print(f"\n{len(drawings) - len(wrong)} of {len(drawings)} drawings read right; wrong: {wrong}")
    assert len(wrong) <= 0.1 * len(drawings), wrong


def drawn_image(page, number: int) -> torch.Tensor:
    """Draws one of the drawings, and gives what the network gets."""
    page.locator("[data-action=clear]").click()
    draw(page, json.loads((HERE / "strokes.json").read_text())[number]["strokes"])
    pixels = json.loads(page.locator("[data-play]").get_attribute("data-pixels"))
    return on_grid((torch.tensor(pixels).view(1, 1, 32, 32) - 0.22) / 0.4)


@pytest.mark.parametrize("number", [2, 21])
def test_logits_and_rates_of_a_drawing_are_the_package_s(visit, number):
    page, model = visit("digit"), in_half(se.load_pretrained("digits-2-64"))
    image = drawn_image(page, number)
    for steps in (1, 4, 8):
        set_range(page, "steps", steps)
        with torch.no_grad(), se.record(model) as rec:
            expected = model(image.expand(steps, 1, 1, 32, 32))[0]
        logits = json.loads(page.locator("[data-play]").get_attribute("data-logits"))
        assert torch.tensor(logits) == pytest.approx(expected, abs=1e-4)
        names = [name for name in se.layer_names(model) if rec[name].kind == "spikes"]
        rows = page.locator("[data-layer]")
        assert rows.evaluate_all("rows => rows.map(row => row.dataset.layer)") == names
        rates = rows.evaluate_all("rows => rows.map(row => Number(row.dataset.rate))")
        assert rates == pytest.approx([float(rec[name].spikes.mean()) for name in names], abs=1e-6)
        assert page.locator("[data-layer] canvas").count() == len(names) * steps


def test_attention_of_a_drawing_is_the_package_s(visit):
    page, model = visit("digit"), in_half(se.load_pretrained("digits-2-64"))
    with torch.no_grad(), se.record(model) as rec:
        model(drawn_image(page, 10))

    def shown_scores() -> torch.Tensor:
        heads = page.locator(".play-heads:not(.play-soft) canvas")
        return torch.tensor(heads.evaluate_all("heads => heads.map(head => JSON.parse(head.dataset.scores))"))

    for block in (0, 1):
        scores = rec[f"blocks.{block}.attn.scores"].values[:, 0].float()  # [T, h, N, N]
        choose(page, "block", str(block))
        torch.testing.assert_close(shown_scores(), scores.mean((0, 2)))
        set_range(page, "query", 27)
        set_range(page, "when", 2)
        torch.testing.assert_close(shown_scores(), scores[2, :, 27])
        set_range(page, "query", -1)
        set_range(page, "when", -1)
    page.locator(".play-heads canvas").first.click(position={"x": 3, "y": 3})  # pressing a place makes it the query
    torch.testing.assert_close(shown_scores(), scores[:, :, 0].mean(0))


def test_a_token_is_followed_through_the_picture_of_the_network(visit):
    """From the pixels to the logits; other places are drawn faintly in every layer."""
    page = visit("digit")
    rows = page.locator(".play-raster:not(.head)").evaluate_all(
        "rows => rows.map(r => r.dataset.row ?? r.dataset.layer)"
    )
    layers = [name for name in rows if "." in name]
    assert (
        rows[0] == "pixels"
        and rows[-1] == "logits"
        and rows.index("scores, block 0") == rows.index("blocks.0.attn.v") + 1
    )
    strengths = """layer => {
        const canvas = document.querySelector(`[data-layer="${layer}"] canvas`);
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return [...new Set(data.filter((_, i) => i % 4 === 0))].sort((a, b) => a - b);
    }"""
    last = "canvas => canvas.toDataURL()"
    before = page.locator("[data-row='scores, block 1'] canvas").last.evaluate(last)
    assert all(len(page.evaluate(strengths, layer)) <= 2 for layer in layers)  # a spike or none
    box = page.locator("[data-row=pixels] canvas").first.bounding_box()
    page.locator("[data-row=pixels] canvas").first.click(position={"x": box["width"] * 0.56, "y": box["height"] * 0.56})
    assert "row 4, column 4" in page.locator(".play-slider:has([name=query])").inner_text()
    assert any(len(page.evaluate(strengths, layer)) == 3 for layer in layers)  # and faint spikes
    assert page.locator("[data-row='scores, block 1'] canvas").last.evaluate(last) != before
    page.locator("[data-row=pixels] canvas").first.click(position={"x": box["width"] * 0.56, "y": box["height"] * 0.56})
    assert "mean of all" in page.locator(".play-slider:has([name=query])").inner_text()


def test_drawing_by_keyboard(visit):
    page = visit("digit")
    page.locator(".play-pad").focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Space")
    assert "down" in page.locator(".play-pen-state").inner_text()
    for _ in range(6):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    assert page.locator(".play-answer").inner_text() == "Reads 1"
    page.keyboard.press("Backspace")
    assert page.locator(".play-answer").inner_text() == "Nothing drawn yet"


def test_samples_clear_and_undo(visit):
    page = visit("digit")
    samples = page.locator("[data-sample]")
    names = samples.evaluate_all("samples => samples.map(sample => sample.title)")
    assert {name[0] for name in names} == set("0123456789")
    for number in range(10):
        samples.nth(number).click()
        assert page.locator(".play-answer").inner_text() == f"Reads {names[number][0]}"
    page.locator("[data-action=undo]").click()
    page.locator("[data-action=clear]").click()
    assert page.locator(".play-answer").inner_text() == "Nothing drawn yet"
    assert page.locator(".play-answer").get_attribute("aria-live") == "polite"


WATCH = """window.seen = [];
    const note = () => {
        const text = document.querySelector('.play-answer')?.textContent;
        if (text && text !== window.seen.at(-1)?.[0])
            window.seen.push([text, document.querySelectorAll('[data-layer] .play-cell.later').length]);
    };
    document.addEventListener('DOMContentLoaded',
        () => new MutationObserver(note).observe(document.body, {childList: true, subtree: true, attributes: true}));
"""


def test_the_page_opens_running(visit):
    """A sample is there, its time steps pass once, and then all are shown; without motion all are shown at once."""
    page = visit("digit", script=WATCH)
    page.wait_for_function("document.querySelector('.play-answer').textContent === 'Reads 7'")
    rows = page.locator("[data-layer]").count()
    seen = page.evaluate("window.seen")
    assert [later for text, later in seen if text.endswith("after t = 1")] == [2 * rows]  # two steps are still to come
    assert [text[-5:] for text, _ in seen if "after" in text] == [f"t = {t}" for t in range(4)]
    assert page.locator(".play-cell.later").count() == 0
    page.locator("[data-action=play]").click()
    assert page.locator("[data-action=play]").inner_text() == "Stop"
    calm = visit("digit")
    assert calm.locator(".play-answer").inner_text() == "Reads 7"
    assert "?" not in calm.url.removesuffix("?")  # nothing is in the address until the reader has chosen something


@pytest.mark.parametrize("network", ["digit", "photo"])
def test_why_a_neuron_fired_is_the_package_s(visit, network):
    """Currents, membranes and spikes over all t in every kind of layer; the inputs add up to the current."""
    model = in_half(se.load_pretrained({"digit": "digits-2-64", "photo": "cifar10-2-128"}[network]))
    page = visit(network)
    pixels = torch.tensor(json.loads(page.locator("[data-play]").get_attribute("data-pixels")))
    facts = info({"digit": "digits", "photo": "cifar10"}[network])
    image = pixels.view(32, 32, -1).permute(2, 0, 1)[None]
    image = on_grid((image - torch.tensor(facts.mean).view(1, -1, 1, 1)) / torch.tensor(facts.std).view(1, -1, 1, 1))
    with torch.no_grad(), se.record(model, membranes=True) as rec:
        model(image)
    kinds = ["sps.0", "sps.1", "sps.3", "sps.rpe"] + [
        f"blocks.1.{part}" for part in ("attn.q", "attn.v", "attn.attn", "attn.proj", "mlp.hidden", "mlp.out")
    ]
    kinds = kinds if network == "digit" else ["sps.0", "sps.3", "blocks.1.attn.k", "blocks.1.attn.attn"]
    tried = 0
    for layer in kinds:
        spikes, membrane = (flat(tensor) for tensor in (rec[layer].spikes, rec[layer].membrane))
        for index in (int(spikes.sum(0).argmax()), int(membrane.sum(0).argmin()))[: 2 if network == "digit" else 1]:
            page.goto(f"{page.url.split('?')[0]}?layer={layer}&n={index}&t=0")
            page.wait_for_selector("[data-play][data-ready]")
            for t in (0, 3):
                set_range(page, "when", t)
                why = page.locator(".play-why-body")
                found = json.loads(page.locator(".play-why-body .play-trace").get_attribute("data-membrane"))
                assert found == pytest.approx(membrane[:, index].tolist(), abs=1e-4), layer
                shown = [int(spike) for spike in why.locator(".play-trace").get_attribute("data-spikes")]
                assert shown == spikes[:, index].int().tolist(), layer
                current = json.loads(why.get_attribute("data-current"))[t]
                parts = json.loads(why.get_attribute("data-parts"))
                assert sum(parts) == pytest.approx(current, abs=1e-4), layer
                assert f"H[{t}] = " in why.locator(".play-equation").inner_text()
                tried += 1
    assert tried == (4 if network == "digit" else 2) * len(kinds)


def flat(values: torch.Tensor) -> torch.Tensor:
    """One sample's neurons in the order of the pages: [T, ...] as [T, rows x columns x features]."""
    values = values[:, 0]
    if values.dim() == 4 and values.shape[2] == values.shape[3]:  # [T, C, H, W]
        return values.permute(0, 2, 3, 1).flatten(1)
    return (values.transpose(1, 2) if values.dim() == 4 else values).flatten(1)  # [T, h, N, d] or [T, N, D]


def test_neuron_3_of_token_12(visit):
    """A reader's task, done as a reader would: choose the layer, the feature, and the place of token 12."""
    page, model = visit("digit"), in_half(se.load_pretrained("digits-2-64"))
    page.select_option("select[name=layer]", "blocks.0.attn.q")
    set_range(page, "feature", 3)
    box = page.locator(".play-map").bounding_box()
    page.locator(".play-map").click(position={"x": 4.5 * box["width"] / 8, "y": 1.5 * box["height"] / 8})
    said = page.locator(".play-why .play-said").inner_text()
    assert said.startswith("blocks.0.attn.q, feature 3 of token 12 (row 1, column 4):")
    pixels = torch.tensor(json.loads(page.locator("[data-play]").get_attribute("data-pixels"))).view(1, 1, 32, 32)
    with torch.no_grad(), se.record(model) as rec:
        model(on_grid((pixels - info("digits").mean[0]) / info("digits").std[0]))
    steps = flat(rec["blocks.0.attn.q"].spikes)[:, 12 * 64 + 3].nonzero().flatten().tolist()
    assert said.endswith(f"fires at t = {', '.join(map(str, steps))}" if steps else "never fires")
    assert page.locator(".play-why h2").inner_text() == f"Why did this neuron {'' if steps else 'not '}fire?"


def test_the_buttons_of_a_slider_name_a_neuron_exactly(visit):
    page = visit("digit")
    page.select_option("select[name=layer]", "blocks.0.attn.q")
    set_range(page, "feature", 4)
    set_range(page, "place", 11)
    page.locator(".play-fine:has([name=feature]) button").first.click()
    page.locator(".play-fine:has([name=place]) button").last.click()
    said = page.locator(".play-why .play-said").inner_text()
    assert said.startswith("blocks.0.attn.q, feature 3 of token 12 (row 1, column 4):")
    page.select_option("select[name=layer]", "sps.0")  # 32 x 32 places, which are no tokens
    assert page.locator(".play-slider:has([name=place]) label").inner_text() == "Place"
    assert page.locator("[name=place]").get_attribute("max") == "1023"


def test_an_input_leads_to_the_neuron_behind_it(visit):
    page = visit("digit")
    page.select_option("select[name=layer]", "sps.1")
    for _ in range(2):
        button = page.locator(".play-parts button").first
        if button.count():
            source = button.get_attribute("title").removeprefix("Why did this one fire? ")
            button.click()
            body = page.locator(".play-why-body")
            assert body.get_attribute("data-neuron") == source
            t = int(body.get_attribute("data-t"))
            assert body.locator(".play-trace").get_attribute("data-spikes")[t] == "1"
    assert page.locator(".play-why-body").get_attribute("data-neuron") == "sps.0"


def test_a_neuron_is_found_by_pressing_it_and_by_keyboard(visit):
    page = visit("digit")
    page.locator("[data-layer='blocks.0.attn.q'] canvas").nth(2).click(position={"x": 20, "y": 20})
    body = page.locator(".play-why-body")
    assert body.get_attribute("data-neuron") == "blocks.0.attn.q" and body.get_attribute("data-t") == "2"
    before = int(body.get_attribute("data-index"))
    page.locator(".play-map").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight" if before // 64 % 8 < 7 else "ArrowLeft")
    assert abs(int(body.get_attribute("data-index")) - before) in (64, 7 * 64, 8 * 64, 9 * 64)


def test_the_address_holds_the_state(visit):
    """A copied link opens the same drawing, time step, neuron and token."""
    page = visit("digit")
    page.locator("[data-action=clear]").click()
    draw(page, json.loads((HERE / "strokes.json").read_text())[5]["strokes"])
    set_range(page, "when", 2)
    set_range(page, "query", 27)
    choose(page, "block", "1")
    page.select_option("select[name=layer]", "blocks.1.mlp.hidden")
    set_range(page, "feature", 9)
    read = """() => {
        const why = document.querySelector('.play-why-body').dataset;
        const heads = [...document.querySelectorAll('.play-heads canvas')].map(canvas => canvas.dataset.scores);
        return [document.querySelector('.play-answer').textContent, why.neuron, why.index, why.t, why.current, heads];
    }"""
    page.wait_for_function("location.search.includes('layer=blocks.1.mlp.hidden') && location.search.includes('d=')")
    page.wait_for_timeout(300)
    there = visit("digit" + page.url[page.url.index("?") :])
    mine, theirs = page.evaluate(read), there.evaluate(read)
    assert mine[:4] == theirs[:4] and mine[3] == "2"
    for wrong in ("sample=99&d=zz&t=77", "layer=x&n=3&token=-4&T=0", "layer=sps.0&n=99999999"):
        assert visit(f"digit?{wrong}").locator(".play-answer").inner_text() == "Reads 7"
    assert visit("photo?photo=dog&T=x").locator(".play-answer").inner_text() == "Says: cat"
    assert visit("digit?sample=3&T=2").locator(".play-answer").inner_text() == "Reads 3"


def test_link_and_picture_can_be_copied_and_controls_hidden(visit):
    page = visit("digit")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-sample='2']").click()
    page.wait_for_function("location.search.includes('sample=2')")
    page.locator("[data-action=link]").click()
    page.get_by_text("The link is copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page.locator("[data-action=image]").click()
    page.get_by_text(re.compile("The picture is (copied|saved)")).wait_for()
    page.locator("[data-action=lesson]").click()
    assert not page.locator(".md-header").is_visible() and page.locator(".play-rasters").is_visible()
    assert page.evaluate("scrollY") == 0
    page.wait_for_function("location.search.includes('lesson=1')")
    page.locator("[data-action=link]").click()  # a link that opens without controls
    page.get_by_text("The link is copied.").wait_for()
    assert "lesson=1" in page.evaluate("navigator.clipboard.readText()")
    page.keyboard.press("Escape")
    assert page.locator(".md-header").is_visible()


def test_softmax_beside_ssa_is_of_the_same_spikes(visit):
    page, model = visit("digit"), in_half(se.load_pretrained("digits-2-64"))
    with torch.no_grad(), se.record(model) as rec:
        model(drawn_image(page, 10))
    q, k = (rec[f"blocks.0.attn.{name}"].spikes[:, 0].float() for name in "qk")  # [T, h, N, d]
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    set_range(page, "query", 27)
    shown = page.locator(".play-soft canvas").evaluate_all(
        "heads => heads.map(head => JSON.parse(head.dataset.scores))"
    )
    torch.testing.assert_close(torch.tensor(shown), weights[:, :, 27].mean(0), atol=1e-6, rtol=1e-5)


def test_on_a_phone_the_answer_stands_under_the_drawing(visit):
    page = visit("digit", 390)
    pad, answer = (page.locator(name).bounding_box() for name in (".play-pad", ".play-answer"))
    assert 0 < answer["y"] - (pad["y"] + pad["height"]) < 80
    assert pad["y"] + pad["height"] < 844  # and both are in the first screen
    assert answer["y"] < 844


# A photograph


def test_what_the_photograph_page_says(visit):
    """Numbers of its text, the answer on the cat, and the logits."""
    text = (HERE.parents[1] / "docs" / "play" / "photo.md").read_text()
    results = se.load_run("cifar10-2-128").results
    model = in_half(se.load_pretrained("cifar10-2-128"))
    assert text.count(f"{100 * results['accuracy']:.2f} %") == 2 and f"({results['correct']:,})" in text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert 1 / 7 < 1 - results["accuracy"] < 1 / 5.5  # "about one answer in six is wrong"
    config = model.config
    assert f"{config.depth} encoder blocks, {config.dim} features, {config.heads} heads" in " ".join(text.split())
    for name in info("cifar10").classes:
        assert name in text
    page = visit("photo")
    samples = page.locator("[data-sample]")
    assert samples.count() == 6 and "six samples" in text
    answers = []
    for number in range(6):
        samples.nth(number).click()
        answers.append(page.locator(".play-answer").inner_text())
        pixels = torch.tensor(json.loads(page.locator("[data-play]").get_attribute("data-pixels")))
        facts = info("cifar10")
        image = ((pixels.view(32, 32, 3) - torch.tensor(facts.mean)) / torch.tensor(facts.std)).permute(2, 0, 1)
        with torch.no_grad():
            expected = model(on_grid(image[None]))[0]
        logits = json.loads(page.locator("[data-play]").get_attribute("data-logits"))
        assert logits == pytest.approx(expected.tolist(), abs=1e-4)
        assert answers[-1] == f"Says: {facts.classes[int(expected.argmax())]}"
    print(answers)
    assert answers[0] == "Says: cat" and len(set(answers)) > 1  # some change alters the answer


def test_a_picture_of_one_s_own(visit, tmp_path):
    page = visit("photo")
    Image.new("RGB", (300, 200), (90, 140, 220)).save(tmp_path / "sky.png")
    page.set_input_files("input[type=file]", tmp_path / "sky.png")
    page.wait_for_function(
        "document.querySelector('.play-photo').getContext('2d').getImageData(9, 9, 1, 1).data[2] > 200"
    )
    pixels = json.loads(page.locator("[data-play]").get_attribute("data-pixels"))
    assert pixels == pytest.approx([90 / 255, 140 / 255, 220 / 255] * 1024, abs=0.01)
    (tmp_path / "no.png").write_text("not a picture")
    page.set_input_files("input[type=file]", tmp_path / "no.png")
    page.get_by_text("no.png is not a picture").wait_for()


def test_drawing_by_touch(visit):
    """A finger draws and does not scroll the page."""
    page = visit("digit", 390, touch=True)
    page.locator(".play-pad").scroll_into_view_if_needed()
    box, before = page.locator(".play-pad").bounding_box(), page.evaluate("scrollY")
    session = page.context.new_cdp_session(page)

    def touch(kind, x, y):
        points = [] if kind == "touchEnd" else [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.5, 0.1)
    for step in range(1, 9):
        touch("touchMove", 0.5, 0.1 + 0.1 * step)
    touch("touchEnd", 0, 0)
    page.wait_for_function("document.querySelector('.play-answer').textContent === 'Reads 1'")
    assert page.evaluate("scrollY") == before


def test_a_network_that_is_not_there(visit, site):
    """One line says what is wrong and what to do."""
    page = visit("neuron")
    page.evaluate("document.querySelector('[data-play]').removeAttribute('data-started')")
    said = page.evaluate(
        """async () => {
            window.fetch = async () => new Response('', {status: 404, statusText: 'Not Found'});
            const { mount } = await import(location.origin + '/javascripts/play/digit.js');
            const element = document.createElement('div');
            document.body.append(element);
            await mount(element);
            return element.textContent;
        }"""
    )
    assert re.search("could not be loaded .*404.* Reload", said)
