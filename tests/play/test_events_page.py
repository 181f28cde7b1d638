"""The events page: its recordings, frames and answers are those of the package, in every order of time."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_play_pages import choose, set_range

import spikformer_edu as se
from spikformer_edu.data import digits, digits_motion
from spikformer_edu.data.digits_dvs import images
from spikformer_edu.data.events import to_frames
from spikformer_edu.export.js import in_half

pytestmark = pytest.mark.slow  # a browser opens the page for every test

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "play" / "events.md").read_text().split())
SIZE, PERIOD, WAYS = digits_motion.INFO.image_size, digits_motion.PERIOD, digits_motion.INFO.classes
ORDERS = ("recorded", "backwards", "reversed", "swapped", "shuffled", "summed")


@pytest.fixture(scope="module")
def model():
    return in_half(se.load_pretrained("digits-motion-2-64"))


def recording(digit: int, way: str) -> np.ndarray:
    """The first test digit of a class, going round."""
    pixels, targets = images()
    number = next(number for number in digits.split(targets, None, None)[2] if targets[number] == digit)
    return digits_motion.record(pixels[[number]], [number], way == "clockwise", SIZE)[0]


def backwards(events: np.ndarray) -> np.ndarray:
    """As a film: what got brighter gets darker."""
    turned = events[::-1].copy()
    turned["t"], turned["p"] = PERIOD - 1 - turned["t"], ~turned["p"]
    return turned


def frames(recordings: list[np.ndarray], steps: int = 8) -> torch.Tensor:
    """``[T, B, 2, H, W]``."""
    return torch.from_numpy(np.stack([to_frames(r, steps, SIZE, SIZE) for r in recordings], 1).astype(np.float32))


def shown(page) -> tuple[torch.Tensor, list[float]]:
    """What the network of the page got, ``[T, 1, 2, H, W]``, and its logits."""
    demo = page.locator("[data-play=events]")
    pixels = torch.tensor(json.loads(demo.get_attribute("data-pixels")), dtype=torch.float32)
    logits = json.loads(demo.get_attribute("data-logits"))
    return pixels.view(len(pixels), SIZE, SIZE, 2).permute(0, 3, 1, 2)[:, None], logits


def answer(page) -> str:
    return page.locator(".play-left > .play-answer").inner_text()


def play(page, order: str) -> None:
    """In another order, with the question answered by "Just show me"."""
    choose(page, "order", order)
    if order != "recorded":
        page.locator("[data-guess='']").click()


@pytest.mark.parametrize("way", WAYS)
def test_every_recording_is_the_package_s(visit, model, way):
    page = visit(f"events?way={way}")
    for digit in range(10):
        page.locator(f"[data-sample='{digit}']").click()
        expected = frames([recording(digit, way)])
        given, logits = shown(page)
        assert torch.equal(given, expected)
        with torch.no_grad():
            assert logits == pytest.approx(model(expected.double())[0].tolist(), abs=1e-4)
        assert answer(page) == f"Says: {WAYS[int(np.argmax(logits))]}"


def test_every_order_is_what_it_says(visit, model):
    page = visit("events?digit=3")
    events = recording(3, "clockwise")
    own = frames([events])
    expected = {"recorded": own, "backwards": frames([backwards(events)]), "reversed": own.flip(0)}
    expected["swapped"] = own.flip(2)
    expected["summed"] = own.sum(0, keepdim=True).expand_as(own)
    for order in ORDERS:
        play(page, order)
        given, logits = shown(page)
        if order == "shuffled":
            places = [[torch.equal(one, other) for other in own].index(True) for one in given]
            assert sorted(places) == list(range(8)) and places != list(range(8))
            page.locator("[data-action=again]").click()
            page.locator("[data-guess='']").click()
            assert not torch.equal(shown(page)[0], given)
        else:
            assert torch.equal(given, expected[order]), order
        with torch.no_grad():
            assert logits == pytest.approx(model(given.double())[0].tolist(), abs=1e-4)
    play(page, "recorded")
    for steps in (1, 3, 5):
        set_range(page, "steps", steps)
        assert torch.equal(shown(page)[0], frames([events], steps))
    play(page, "shuffled")
    assert shown(page)[0].sum() == len(events)


def test_the_answer_so_far_and_the_rates_are_the_package_s(visit, model):
    page = visit("events")
    given, _ = shown(page)
    with torch.no_grad(), se.record(model) as rec:
        model(given.double())
    so_far = rec.logits[:, 0].cumsum(0) / torch.arange(1, 9)[:, None]
    leads = page.locator(".play-strip.soFar > *").evaluate_all("bars => bars.map(bar => Number(bar.dataset.lead))")
    assert leads == pytest.approx((so_far[:, 0] - so_far[:, 1]).tolist(), abs=1e-4)
    names = [name for name in se.layer_names(model) if rec[name].kind == "spikes"]
    rows = page.locator("[data-layer]")
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.layer)") == names
    rates = rows.evaluate_all("rows => rows.map(row => Number(row.dataset.rate))")
    assert rates == pytest.approx([float(rec[name].spikes.mean()) for name in names], abs=1e-6)
    tokens = rec["sps.3"].spikes + rec["sps.rpe"].spikes
    said = page.locator(".play-strip.tokens canvas").evaluate_all("all => all.map(canvas => canvas.ariaLabel)")
    assert said == [f"Tokens at t = {t}: {int(tokens[t].sum())} spikes" for t in range(8)]


def test_why_a_neuron_of_the_first_layer_fired(visit, model):
    """Its inputs are event counts, and they add up to its current."""
    with torch.no_grad(), se.record(model, membranes=True) as rec:
        model(frames([recording(5, "clockwise")]).double())
    spikes, membrane = (
        values[:, 0].permute(0, 2, 3, 1).flatten(1) for values in (rec["sps.0"].spikes, rec["sps.0"].membrane)
    )
    index = int(spikes[2].argmax())
    page = visit(f"events?layer=sps.0&n={index}&t=2")
    why = page.locator(".play-why-body")
    found = json.loads(why.locator(".play-trace").get_attribute("data-membrane"))
    assert found == pytest.approx(membrane[:, index].tolist(), abs=1e-4)
    parts, currents = (json.loads(why.get_attribute(f"data-{name}")) for name in ("parts", "current"))
    assert sum(parts) == pytest.approx(currents[2], abs=1e-4)
    assert re.search(r"events \(\d+, \d+\) (darker|brighter)", why.inner_text())


def test_the_reader_predicts_first(visit):
    page = visit("events")
    before = answer(page)
    assert before == "Says: clockwise"
    choose(page, "order", "backwards")
    assert not page.locator(".play-left > .play-answer").is_visible() and page.locator(".play-question").is_visible()
    assert not page.locator(".play-strip.soFar").is_visible() and not page.locator(".play-course").is_visible()
    page.locator("[data-guess='clockwise']").click()
    assert answer(page) == "Says: counter-clockwise" and not page.locator(".play-question").is_visible()
    assert page.locator(".play-verdict").inner_text() == "You predicted clockwise. It says counter-clockwise."
    choose(page, "order", "recorded")
    assert answer(page) == before and page.locator(".play-verdict").inner_text() == ""
    choose(page, "order", "backwards")
    page.locator("[data-guess='counter-clockwise']").click()
    assert page.locator(".play-verdict").inner_text() == "You predicted counter-clockwise: right."
    choose(page, "order", "summed")
    page.locator("[data-action=play]").click()  # whoever plays wants to see
    assert not page.locator(".play-question").is_visible()


def test_the_cube_is_turned_by_pointer_and_keyboard(visit):
    page = visit("events")
    cube = page.locator(".play-cube")
    view = "cube => [cube.dataset.yaw, cube.dataset.pitch].map(Number)"
    yaw, pitch = cube.evaluate(view)
    cube.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert cube.evaluate(view) == pytest.approx([yaw - np.pi / 36, pitch - np.pi / 36], abs=0.011)
    page.keyboard.press("Home")
    assert cube.evaluate(view) == [yaw, pitch]
    box = cube.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 100)
    page.mouse.up()
    assert cube.evaluate(view) == pytest.approx([yaw - 0.4, pitch], abs=0.011)
    page.locator("[data-view=along]").click()
    assert cube.evaluate(view) == [1.57, 0]
    page.wait_for_function("location.search.includes('turn=1.57')")
    there = visit("events" + page.url[page.url.index("?") :])
    assert there.locator(".play-cube").evaluate(view) == [1.57, 0]


def test_frames_stop_time_and_the_address_holds_the_state(visit):
    page = visit("events")
    page.locator("[data-sample='8']").click()
    choose(page, "way", "counter-clockwise")
    play(page, "shuffled")
    page.locator("[data-frame='2']").click()
    assert answer(page).endswith("after t = 2")
    assert page.locator(".play-strip.frames .now").get_attribute("data-frame") == "2"
    page.wait_for_function("location.search.includes('t=2')")
    for part in ("digit=8", "way=counter-clockwise", "order=shuffled"):
        assert part in page.url
    there = visit("events" + page.url[page.url.index("?") :])
    assert torch.equal(shown(there)[0], shown(page)[0]) and answer(there) == answer(page)
    for wrong in ("digit=11&way=up&order=x&seed=-1&turn=a,b", "turn=1&t=99&T=0"):
        assert answer(visit(f"events?{wrong}")) == "Says: clockwise"


WATCH = """window.seen = new Set();
    const note = () => window.seen.add(document.querySelectorAll('.play-strip.frames .later').length);
    document.addEventListener('DOMContentLoaded',
        () => new MutationObserver(note).observe(document.body, {childList: true, subtree: true, attributes: true}));
"""


def test_the_page_opens_running(visit):
    """Frames that are still to come are faint, one fewer at every step; at the end all are shown."""
    page = visit("events", script=WATCH)
    page.wait_for_function("document.querySelector('.play-left > .play-answer').textContent === 'Says: clockwise'")
    assert set(range(8)) <= set(page.evaluate("[...window.seen]"))
    assert page.locator(".play-strip .later").count() == 0


def test_on_a_phone_the_answer_is_on_the_first_screens(visit):
    page = visit("events", 390)
    cube, said = (page.locator(name).bounding_box() for name in (".play-cube", ".play-left > .play-answer"))
    below = page.locator("[data-name=order]").bounding_box()
    assert cube["y"] + cube["height"] <= said["y"] < below["y"] and said["y"] < 2 * 844


# What the page says


def test_what_the_page_says_of_718_recordings(model):
    """Answers in every order, for other T, and after every frame; a sum in another order may move two answers."""
    pixels, targets = images()
    test = digits.split(targets, None, None)[2]
    recordings = [e for way in WAYS for e in digits_motion.record(pixels[test], test, way == "clockwise", SIZE)]
    labels = torch.arange(2).repeat_interleave(len(test))

    def answers(given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(part.double()) for part in given.split(64, 1)]).argmax(1)

    own = frames(recordings)
    with torch.no_grad(), se.record(model, layers=[]) as rec:
        recorded = model(own.double()).argmax(1)
    order = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i)) for i in range(len(labels))], 1)
    others = {
        "of the 718 simulated test recordings all N answers change": frames([backwards(e) for e in recordings]),
        "With random orders N of the 718 answers change": own.gather(0, order[..., None, None, None].expand_as(own)),
        "each frame unchanged, N answers change": own.flip(0),
        "movement in each frame is turned round, and N change": own.flip(2),
    }
    found = {sentence: int((answers(given) != recorded).sum()) for sentence, given in others.items()}
    found["As recorded, all N are right"] = int((recorded == labels).sum())
    rights = {"N of 718 are right: chance": own.sum(0, keepdim=True).expand_as(own)}
    rights |= {f"with T = {steps} on N": frames(recordings, steps) for steps in (2, 1)}
    rights["With T = 4 it is right on N"] = frames(recordings, 4)
    found |= {sentence: int((answers(given) == labels).sum()) for sentence, given in rights.items()}
    so_far = rec.logits.cumsum(0).argmax(-1)
    right = [int((each == labels).sum()) for each in so_far]
    for step, sentence in ((0, "After the first frame N of the 718"), (1, "after two N"), (3, "after four N")):
        found[sentence] = right[step]
    assert right[6] == len(labels) == 718  # "and after seven all"
    for sentence, number in found.items():
        said = re.search(re.escape(sentence).replace("N", r"(\d+)", 1), PAGE)
        assert said and abs(int(said[1]) - number) <= 2, (sentence, number)
    assert 0 < found["With random orders N of the 718 answers change"] < 71  # "Fewer than one in ten."


def test_what_the_page_says_of_the_network(model):
    config = model.config
    assert f"{config.depth} encoder blocks, {config.dim} features, {config.heads} heads" in PAGE
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in PAGE
    assert f"{digits_motion.INFO.samples['train']:,} simulated recordings" in PAGE
    assert f"{SIZE} x {SIZE} pixels, in {PERIOD // 1000} ms" in PAGE and f"T = {config.time_steps} frames" in PAGE
    with torch.no_grad(), se.record(model) as rec:
        model(frames([recording(5, "clockwise")]).double())
    assert rec["blocks.0.attn.q"].spikes.shape[3] == 16  # tokens


def test_predictions(visit):
    page = visit("events")
    predictions, whys = page.locator("[data-play=predict]"), page.locator("details.question")
    assert predictions.count() == whys.count() == 3
    for number in range(3):
        prediction = predictions.nth(number)
        prediction.locator("input").nth(int(prediction.get_attribute("data-answer")) - 1).check()
        whys.nth(number).locator("summary").click()
        prediction.get_by_text("Your prediction was right.").wait_for()
