"""A report as one HTML page."""

import base64
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .data import DatasetInfo
from .energy import CONVENTIONS, DISCLAIMER, EnergyReport
from .model import Spikformer
from .record import Recording
from .table import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5a5a5a; --paper: #ffffff; --card: #f4f4f2; --line: #d8d8d4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #b4b4b4; --paper: #17181a; --card: #222427; --line: #3b3e42; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main, header { max-width: 1100px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 10px; }
p { max-width: 75ch; }
.soft { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 14px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 16px 0; }
nav a { color: inherit; }
figure { margin: 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
figure .wide { background: #ffffff; padding: 12px; }
img { display: block; height: auto; width: min(100%, var(--wide)); margin: 0 auto; }
figcaption { color: var(--soft); font-size: 0.92rem; margin-top: 6px; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; font-family: ui-monospace, monospace; }
td.text, th.text { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
tr.total td { font-weight: 600; }
footer { max-width: 1100px; margin: 48px auto 24px; padding: 0 20px; color: var(--soft); font-size: 0.9rem; }
@media (max-width: 720px) {
  main, header, footer { padding-left: 14px; padding-right: 14px; }
  img { width: max(100%, calc(var(--wide) * 0.72)); }
}
"""


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        model: the network, in evaluation mode.
        name: name of the run.
        info: the facts about the data set.
        inputs: a batch as the network takes it; its first sample is drawn, rates are measured on all of it.
        labels: true classes ``[B]``.
        index: number of the first sample in its split.
        split: name of the split: "test", "val" or "train".
        log: path of a ``metrics.csv``; None: training is not drawn.
        note: a remark on the data that every figure shows; empty: none.
    """

    model: Spikformer
    name: str
    info: DatasetInfo
    inputs: Tensor
    labels: Tensor
    index: int
    split: str
    log: Path | None = None
    note: str = ""

    @property
    def picture(self) -> Tensor:
        """The first sample as people see it: pixels ``[C, H, W]`` in [0, 1], or frames ``[T, C, H, W]``."""
        if self.inputs.dim() == 5:
            return self.inputs[:, 0]
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.info.mean, self.info.std))
        return (self.inputs[0] * std + mean).clamp(0, 1) if self.info.mean else self.inputs[0]


Drawing = tuple[str, str, str, bytes, float]  # file name, title, alternative text, PNG, width in inches


def page_of(subject: Subject, whole: Recording, report: EnergyReport, figures: list[Drawing]) -> str:
    """The page: facts, figures, the layer table, the energy table."""
    model, info = subject.model, subject.info
    output = whole.logits.mean(0)
    guess, label = int(output[0].argmax()), int(subject.labels[0])
    names = [info.classes[k] if k < len(info.classes) else f"class {k}" for k in (guess, label)]
    right = int((output.argmax(1) == subject.labels).sum())
    count = len(subject.labels)
    facts = {
        "model": f"{subject.name}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{model.config.depth} blocks, width {model.config.dim}, {model.config.heads} heads",
        "data": f"{info.title}, {subject.split} sample {subject.index}",
        "time steps": f"T = {report.time_steps}",
        "answer": f"{names[0]} (true: {names[1]})",
        "note": subject.note,
        "rates": f"measured on {count} samples from number {subject.index} on; {right} of them classified correctly",
    }
    definitions = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, *_ in figures)
    sections = []
    for name, title, alt, png, inches in figures:
        data = base64.b64encode(png).decode()
        sections.append(
            f'<section id="{name}"><h2>{escape(title)}</h2><figure>'
            f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">'
            f'<img style="--wide:{inches * 96:.0f}px" src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'
            f"<figcaption>{escape(alt)}</figcaption></figure></section>"
        )
    conventions = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in CONVENTIONS.items())
    name, body = escape(subject.name), "".join(sections)
    layers, costs = whole.summary().table().html("layers"), report.table().html("energy by layer")
    # The icon is an empty data: address, or the browser would ask a server for one.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{name}: every spike</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{name}: every spike</h1>
<p class="soft">What one Spikformer does in one forward pass, layer by layer.</p>
<dl>{definitions}</dl>
<nav>{links}<a href="#layers">Layers</a><a href="#costs">Energy table</a></nav>
</header>
<main>
{body}
<section id="layers"><h2>Layers</h2>{layers}</section>
<section id="costs"><h2>Energy of one sample</h2>{costs}
<p>{escape(report.without_spikes)}</p><dl>{conventions}</dl></section>
</main>
<footer><p>{escape(DISCLAIMER)}</p></footer>
</body>
</html>
"""
