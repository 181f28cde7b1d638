"""The network in the reader's browser fires where the package's does: every spike of every layer, on real digits."""

import json
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import spikformer_edu as se
from spikformer_edu.data import digits_motion, info, load
from spikformer_edu.data.digits import split
from spikformer_edu.data.digits_dvs import images
from spikformer_edu.data.events import to_frames
from spikformer_edu.export import export
from spikformer_edu.export.js import PIXEL_GRID, in_half, on_grid, tensors

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "javascripts" / "play" / "spikformer.js"
CAT = ROOT / "docs" / "assets" / "cat.png"
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: the JavaScript forward pass was not run")


def write_case(folder: Path, index: int, model: se.Spikformer, image: Tensor, time_steps: int) -> dict:
    """What the rounded network does in PyTorch with one image or with event frames ``[T, 1, 2, H, W]``, as files."""
    image = on_grid(image)
    frames = image if image.dim() == 5 else image.expand(time_steps, *image.shape)
    with torch.no_grad(), se.record(model) as rec:
        # The still image takes the path it takes in training; another T goes in as that many copies.
        logits = model(image if time_steps == model.config.time_steps else frames)
    layers, scores, chunks = [], [], []
    for name in se.layer_names(model):
        layer = rec[name]
        if layer.kind == "spikes":
            spikes = layer.spikes
            if name.startswith("sps."):
                spikes = spikes[:, 0].permute(0, 2, 3, 1)  # [T, H, W, C]
            elif spikes.dim() == 5:
                spikes = spikes[:, 0].transpose(1, 2)  # [T, N, h, d]
            else:
                spikes = spikes[:, 0]
            layers.append({"name": name, "length": spikes.numel()})
            chunks.append(spikes)
    for block, attention in enumerate(model.blocks):
        counts = rec[f"blocks.{block}.attn.scores"].values[:, 0] / attention.attn.scale
        scores.append({"length": counts.numel()})
        chunks.append(counts)
    given = image[:, 0] if image.dim() == 5 else image
    pixels = given.permute(0, 2, 3, 1)  # [H, W, C], or [T, H, W, C]
    (folder / f"{index}.pixels").write_bytes(pixels.numpy().astype("<f4").tobytes())
    (folder / f"{index}.spikes").write_bytes(b"".join(chunk.to(torch.uint8).numpy().tobytes() for chunk in chunks))
    return {"timeSteps": time_steps, "logits": logits[0].tolist(), "layers": layers, "scores": scores}


def run_node(folder: Path) -> dict:
    done = subprocess.run(
        [NODE, ROOT / "tests" / "play" / "forward.mjs", SCRIPT, folder], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compare(folder: Path, model: se.Spikformer, jobs: list[tuple[Tensor, int]]) -> dict:
    cases = [write_case(folder, index, model, image, steps) for index, (image, steps) in enumerate(jobs)]
    (folder / "cases.json").write_text(json.dumps(cases))
    return run_node(folder)


@pytest.fixture(scope="module")
def model():
    return se.load_pretrained("digits-2-64")


@pytest.fixture(scope="module")
def digits():
    images, _ = load("digits").test.fetch(torch.arange(100), None)
    return images


@needs_node
def test_every_spike_of_100_test_digits(tmp_path, model, digits):
    export("digits-2-64", tmp_path, "js")
    report = compare(tmp_path, in_half(model), [(image[None], 4) for image in digits])
    milliseconds = statistics.median(report["milliseconds"]["4"])
    print(f"\n{report['values']:,} values, {report['ones']:,} not zero, {len(report['mismatches'])} mismatches")
    print(f"logits within {report['logits']:.1e}; {milliseconds:.1f} ms an image (median)")
    assert report["values"] > 20e6 and report["ones"] > 1e6
    assert report["mismatches"] == []
    assert report["logits"] < 1e-12


@needs_node
def test_every_spike_of_100_simulated_recordings(tmp_path):
    """50 test digits that go round either way, T = 8 frames of event counts."""
    pixels, targets = images()
    test, size = split(targets, None, None)[2][:50], digits_motion.INFO.image_size
    recordings = [events for way in (True, False) for events in digits_motion.record(pixels[test], test, way, size)]
    frames = [torch.from_numpy(to_frames(events, 8, size, size).astype(np.float32)) for events in recordings]
    export("digits-motion-2-64", tmp_path, "js")
    model = in_half(se.load_pretrained("digits-motion-2-64"))
    report = compare(tmp_path, model, [(each[:, None], 8) for each in frames])
    print(f"\n{report['values']:,} values, {report['ones']:,} not zero, {len(report['mismatches'])} mismatches")
    milliseconds = statistics.median(report["milliseconds"]["8"])
    print(f"logits within {report['logits']:.1e}; {milliseconds:.1f} ms a recording (median)")
    assert report["values"] > 20e6 and report["ones"] > 1e6
    assert report["mismatches"] == []
    assert report["logits"] < 1e-12


def photographs() -> Tensor:
    """100 test images of CIFAR-10 where they are on this machine; else pieces of a photograph that may be shared."""
    try:
        return load("cifar10").test.fetch(torch.arange(0, 10_000, 100), None)[0]
    except se.SpikformerError:
        cat = torch.from_numpy(np.array(Image.open(CAT).convert("RGB"))).permute(2, 0, 1)[None] / 255
        facts, pieces = info("cifar10"), []
        for i in range(100):
            left, top, size = i % 10, i // 10, 22 - i % 7
            piece = torch.nn.functional.interpolate(cat[..., top : top + size, left : left + size], 32, mode="bilinear")
            pieces.append(piece.flip(-1) if i % 2 else piece)
        shape = (1, 3, 1, 1)
        return (torch.cat(pieces) - torch.tensor(facts.mean).view(shape)) / torch.tensor(facts.std).view(shape)


@needs_node
@pytest.mark.slow
def test_every_spike_of_100_photographs(tmp_path):
    model = se.load_pretrained("cifar10-2-128")
    export("cifar10-2-128", tmp_path, "js")
    report = compare(tmp_path, in_half(model), [(image[None], 4) for image in photographs()])
    milliseconds = statistics.median(report["milliseconds"]["4"])
    print(f"\n{report['values']:,} values, {report['ones']:,} not zero, {len(report['mismatches'])} mismatches")
    print(f"logits within {report['logits']:.1e}; {milliseconds:.1f} ms an image (median)")
    assert report["values"] > 100e6 and report["ones"] > 5e6
    assert report["mismatches"] == []
    assert report["logits"] < 1e-12


def answers(model: se.Spikformer, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part.to(model.head.weight.dtype)).argmax(1) for part in images.split(50)])


def test_what_rounding_changes_is_what_the_page_says():
    page = (ROOT / "docs" / "play" / "photo.md").read_text(encoding="utf-8")
    images, labels = load("digits").test.fetch(torch.arange(359), None)
    model = se.load_pretrained("digits-2-64")
    packaged, rounded = answers(model, images), answers(in_half(model), on_grid(images))
    assert f"read {int((packaged == labels).sum())} right,\nwith the same answers" in page
    assert torch.equal(packaged, rounded)


@pytest.mark.slow
def test_what_rounding_changes_of_1000_photographs():
    try:
        images, labels = load("cifar10").test.fetch(torch.arange(0, 10_000, 10), None)
    except se.SpikformerError as error:
        pytest.skip(str(error))
    model = se.load_pretrained("cifar10-2-128")
    packaged, rounded = answers(model, images), answers(in_half(model), on_grid(images))
    page = " ".join((ROOT / "docs" / "play" / "photo.md").read_text(encoding="utf-8").split())
    said = re.search(r"reads (\d+) right, the rounded one (\d+), and (\d+) answers are the same", page)
    found = (packaged == labels).sum(), (rounded == labels).sum(), (packaged == rounded).sum()
    # In float32 a sum in another order may fall on the other side of a threshold.
    assert all(abs(int(count) - int(number)) <= 2 for count, number in zip(found, said.groups(), strict=True)), found


def test_the_time_of_a_picture_is_what_was_measured():
    rows = json.loads((ROOT / "docs" / "results" / "browser.json").read_text(encoding="utf-8"))["rows"]
    fast, slow = (round(statistics.median(row["milliseconds"])) for row in rows if row["network"] == "cifar10-2-128")
    for page in ("play/photo.md", "zh/play/photo.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert re.search(rf"{fast} (ms|毫秒)", text) and re.search(rf"{slow} (ms|毫秒)", text), page
    assert slow < 300


@pytest.mark.parametrize("name", ["digits-2-64", "cifar10-2-128"])
def test_no_sum_can_be_rounded(name):
    """Why the order of additions does not matter: at T = 8 the largest membrane that the weights allow fits, as a
    multiple of the smallest step, into the 53 bits of double precision."""
    model = se.load_pretrained(name)
    facts, config = info(name.partition("-")[0]), model.config
    pixel = max(max(mean, 1 - mean) / std for mean, std in zip(facts.mean, facts.std, strict=True))
    found = tensors(in_half(model))
    for layer in (name.removesuffix(".weight") for name in found if name.endswith(".weight")):
        weight, bias = found[layer + ".weight"].double(), found[layer + ".bias"].double()
        largest = pixel if layer == "sps.0" else 2 + 2 * config.depth if ".qkv" in layer or "hidden" in layer else 2
        current = (weight.abs().flatten(0, -2).sum(0) * largest + bias.abs()).max()
        step = 2**-24 / (PIXEL_GRID if layer == "sps.0" else 1) / 2**7  # seven leaks of one half
        assert 2 * current / step < 2**53, layer


@needs_node
def test_other_time_steps(tmp_path, model, digits):
    export("digits-2-64", tmp_path, "js")
    report = compare(tmp_path, in_half(model), [(digits[i][None], steps) for steps in (1, 2, 8) for i in (0, 1, 2)])
    assert report["mismatches"] == [] and report["logits"] < 1e-12


def read_strokes(model: se.Spikformer, drawings: list[list[list[tuple[float, float]]]]) -> list[int]:
    """What the network reads in drawings that the page's own JavaScript turns into pixels."""
    program = (
        f"import {{ rasterise }} from {json.dumps((SCRIPT.parent / 'drawing.js').as_uri())};"
        "import { readFileSync } from 'node:fs';"
        "const drawings = JSON.parse(readFileSync(0, 'utf8'));"
        "console.log(JSON.stringify(drawings.map((strokes) => Array.from(rasterise(strokes)))))"
    )
    command = [NODE, "--input-type=module", "-e", program]
    done = subprocess.run(command, input=json.dumps(drawings), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pixels = torch.tensor(json.loads(done.stdout)).view(-1, 1, 32, 32)
    facts = info("digits")
    with torch.no_grad():
        return model((pixels - facts.mean[0]) / facts.std[0]).argmax(1).tolist()


@needs_node
def test_steep_sevens_without_a_crossbar_are_read_and_ones_with_a_flag_too(model):
    """Drawings that no choice was made on: bars of three lengths, strokes of five slopes, and flags as long."""
    sevens = [
        [[(185 - bar, 50 + tilt), (185, 50), (185 - lean, 240)]]
        for bar in (70, 90, 110)
        for lean in (0, 15, 30, 45, 60)
        for tilt in (0, 10)
    ]
    ones = [
        [[(150 - reach, 50 + drop), (150, 50), (150 - lean, 240)]]
        for reach in (25, 40, 55)
        for lean in (0, 10, 20, 30, 40)
        for drop in (45, 60)
    ]
    read = {7: read_strokes(model, sevens), 1: read_strokes(model, ones)}
    for digit, answers in read.items():
        print(f"\n{answers.count(digit)} of {len(answers)} drawings of {digit} are read as {digit}: {answers}")
        assert len(answers) == 30 and answers.count(digit) >= 27


@needs_node
def test_pixels_are_normalised_as_in_python(tmp_path):
    """The drawing goes through the same (pixel - mean) / std and rounding, to the last bit."""
    export("digits-2-64", tmp_path, "js")
    pixels = torch.linspace(0, 1, 1001)
    expected = on_grid((pixels - info("digits").mean[0]) / info("digits").std[0])
    program = (
        f"import {{ normalise }} from {json.dumps(SCRIPT.as_uri())};"
        "import { readFileSync } from 'node:fs';"
        f"const header = JSON.parse(readFileSync({json.dumps(str(tmp_path / 'model.json'))}));"
        "console.log(JSON.stringify(Array.from(normalise(JSON.parse(readFileSync(0, 'utf8')), header))))"
    )
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", program], input=json.dumps(pixels.tolist()), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout)).double(), expected)


@needs_node
def test_colours_have_their_own_mean_and_std():
    """Pixels [H][W][C], two of them."""
    pixels, facts = torch.rand(2, 3), info("cifar10")
    expected = on_grid((pixels - torch.tensor(facts.mean)) / torch.tensor(facts.std))
    program = (
        f"import {{ normalise }} from {json.dumps(SCRIPT.as_uri())};"
        "const [pixels, mean, std, pixelGrid] = JSON.parse(process.argv[1]);"
        "console.log(JSON.stringify(Array.from(normalise(pixels, { mean, std, pixelGrid }))))"
    )
    given = json.dumps([pixels.flatten().tolist(), facts.mean, facts.std, PIXEL_GRID])
    command = [NODE, "--input-type=module", "-e", program, given]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout)).double(), expected.flatten())


@needs_node
def test_every_number_of_half_precision_is_read():
    bits = torch.arange(2**16, dtype=torch.int32)
    expected = bits.to(torch.int16).view(torch.float16).double()
    finite = expected.isfinite()
    program = (
        f"import {{ half }} from {json.dumps(SCRIPT.as_uri())};"
        "console.log(JSON.stringify(Array.from({ length: 65536 }, (_, bits) => half(bits))))"
    )
    done = subprocess.run([NODE, "--input-type=module", "-e", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout), dtype=torch.float64)[finite], expected[finite])


def test_export_holds_the_folded_network(tmp_path, model):
    """model.json says where every tensor lies, and the folded first layer is the convolution and its batch norm."""
    paths = export("digits-2-64", tmp_path, "js").paths
    assert [path.name for path in paths] == ["model.json", "model.bin"]
    content = json.loads(paths[0].read_text())
    numbers = torch.frombuffer(bytearray(paths[1].read_bytes()), dtype=torch.float16)
    end = 0
    for entry in content["tensors"].values():
        assert entry["offset"] == end
        end += torch.Size(entry["shape"]).numel()
    assert end == len(numbers)
    entry = content["tensors"]["sps.0.weight"]
    weight = numbers[entry["offset"] :][: torch.Size(entry["shape"]).numel()].view(entry["shape"]).permute(3, 0, 1, 2)
    bias = numbers[content["tensors"]["sps.0.bias"]["offset"] :][: weight.shape[0]]
    image, first, rounded = torch.rand(1, 1, 32, 32), model.sps[0], in_half(model).sps[0]
    with torch.no_grad():
        expected = first.bn(first.conv(image))
        found = torch.nn.functional.conv2d(image.double(), weight.double(), bias.double(), padding=1)
        assert torch.equal(found, rounded.bn(rounded.conv(image.double())))
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-3)
    assert content["neurons"]["blocks.0.attn.attn"] == {"beta": 0.5, "threshold": 1.0}  # u = tau H, V_th = 0.5
    assert export("digits-2-64", tmp_path / "again", "js").paths[1].read_bytes() == paths[1].read_bytes()


def test_export_refuses_weights_that_half_precision_cannot_hold(tmp_path, one_line):
    run = se.load_run("digits-2-64")
    model = se.load_pretrained("digits-2-64")
    with torch.no_grad():
        model.head.bias[0] = 1e6
    with pytest.raises(se.SpikformerError) as excinfo:
        export(replace(run, model=model), tmp_path, "js")
    one_line(excinfo, "head.bias", "65504")


def test_export_refuses_what_it_cannot_say(tmp_path, one_line):
    with pytest.raises(se.SpikformerError) as excinfo:
        export("digits-3-64", tmp_path, "js")
    one_line(excinfo, "digits-3-64")
    run = se.load_run("digits-2-64")
    softmax = se.spikformer("digits-2-64", attention="softmax")
    with pytest.raises(se.SpikformerError) as excinfo:
        export(replace(run, model=softmax), tmp_path, "js")
    one_line(excinfo, "softmax", "ssa")


def test_export_takes_class_names_from_the_run(tmp_path):
    """Never from data that lie here now: another data set may have as many classes."""
    run = se.load_run("digits-2-64")
    config = dict(num_classes=2, in_channels=3, time_steps=1)
    model = se.spikformer("digits-2-64", dim=16, heads=2, depth=1, **config).eval()
    data = replace(run.data, dataset="folder", classes=["dog", "cat"])
    run = replace(run, model=model, recipe=replace(run.recipe, dataset="folder"), data=data)
    paths = export(run, tmp_path, "js").paths
    assert json.loads(paths[0].read_text())["classes"] == ["dog", "cat"]


def test_export_of_event_frames_says_their_size(tmp_path):
    """That of the run, not of the data set; event counts have neither mean nor std."""
    run = se.load_run("digits-motion-2-64")
    content = json.loads(export(run, tmp_path, "js").paths[0].read_text())
    assert content["events"] and content["mean"] == content["std"] == []
    assert (content["imageSize"], content["channels"], content["timeSteps"]) == (16, 2, 8)
    run = replace(run, recipe=replace(run.recipe, image_size=32))
    assert json.loads(export(run, tmp_path, "js").paths[0].read_text())["imageSize"] == 32
    assert not json.loads(export("digits-2-64", tmp_path, "js").paths[0].read_text())["events"]
