"""A simulated event camera: recordings of a moving image."""

import numpy as np
import torch
import torch.nn.functional as F

from .events import EVENT, SENSOR


def simulate(
    images: torch.Tensor,
    seeds: list[int],
    size: int = SENSOR,
    loops: int = 6,
    steps: int = 48,
    period: int = 200_000,
    threshold: float = 0.25,
    noise: float = 0.5,
    reach: float = 0.08,
    ways: list[int] | None = None,
    starts: list[float] | None = None,
) -> list[np.ndarray]:
    """Simulate recordings of an event camera in front of which each image moves along a closed path.

    A pixel keeps the log intensity at its last event and sends another event whenever the log intensity has changed by
    the pixel's own threshold. Between two steps the log intensity is linear in time, which gives each event its time.

    Args:
        images: ``[B, H, W]`` in [0, 1]; they are scaled to the sensor.
        seeds: one seed for each image, for thresholds, noise and the state of the pixels at the start.
        size: pixels along each side of the sensor.
        loops: number of rounds along the path, which is a diamond.
        steps: number of positions on the path.
        period: duration of a round, in microseconds.
        threshold: change of log intensity that makes an event: the mean over pixels; their standard deviation is 10 %.
        noise: random events, per pixel and second.
        reach: distance of the corners of the path from its middle, as a share of half the image.
        ways: 1 (counter-clockwise) or -1 (clockwise) for each image; None: 1 for all.
        starts: where on the path each image begins, from 0 (on the left) to below 1; None: 0 for all.

    Returns:
        One array of dtype ``EVENT`` an image, in order of time.
    """
    batch, pixels = len(images), size * size
    enlarged = F.interpolate(images[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)
    turn = torch.arange(steps + 1, dtype=torch.float32) / steps * 4  # once around the four corners of the diamond
    right = reach * ((turn - 2).abs() - 1)
    down = reach * (1 - ((turn - 1) % 4 - 2).abs())
    grid = F.affine_grid(torch.eye(2, 3, dtype=torch.float32)[None], [1, 1, size, size], align_corners=False)
    grid = grid + torch.stack([right, down], 1)[:, None, None]  # [steps + 1, size, size, 2]
    moved = F.grid_sample(
        enlarged.transpose(0, 1).expand(steps + 1, -1, -1, -1), grid, padding_mode="border", align_corners=False
    )
    light = torch.log(0.1 + moved).reshape(steps + 1, batch, pixels).numpy()
    for i, (way, start) in enumerate(zip(ways or [1] * batch, starts or [0.0] * batch, strict=True)):
        if (way, start) != (1, 0.0):
            light[:, i] = light[(int(start * steps) + way * np.arange(steps + 1)) % steps, i]
    random = [np.random.default_rng(seed) for seed in seeds]
    share = np.stack([1 + 0.1 * r.standard_normal(pixels, dtype=np.float32) for r in random]).clip(0.5, 1.5)
    level = (light / (threshold * share)).reshape(steps + 1, -1)  # in thresholds of each pixel
    sent = level[0] + np.concatenate([r.uniform(-1, 1, pixels).astype(np.float32) for r in random])
    changes = np.empty((loops * steps, batch * pixels), dtype=np.int8)
    before = np.empty_like(changes, dtype=np.float32)
    for step in range(loops * steps):
        now = level[step % steps + 1]
        before[step] = sent
        change = np.trunc(now - sent)
        sent += change
        changes[step] = change
    return [
        _recording(changes, before, level, slice(i * pixels, (i + 1) * pixels), size, period, noise, random[i])
        for i in range(batch)
    ]


def _recording(
    changes: np.ndarray,
    before: np.ndarray,
    level: np.ndarray,
    part: slice,
    size: int,
    period: int,
    noise: float,
    random: np.random.Generator,
) -> np.ndarray:
    """The events of one image: ``changes[k, pixel]`` of them in step k, equally far apart in log intensity."""
    total, steps = len(changes), len(level) - 1
    changed = changes[:, part]
    step, pixel = np.divmod(np.flatnonzero(changed != 0), changed.shape[1])
    change = changed[step, pixel].astype(np.intp)
    number = np.abs(change)
    which = np.arange(1, number.sum() + 1) - (np.cumsum(number) - number).repeat(number)  # 1, 2, ... within a step
    step, pixel, up = (v.repeat(number) for v in (step, pixel, change > 0))
    start, end = level[step % steps, part.start + pixel], level[step % steps + 1, part.start + pixel]
    crossed = before[step, part.start + pixel] + np.where(up, which, -which)
    tick = period / steps
    share = np.divide(crossed - start, end - start, out=np.zeros_like(start), where=end != start)  # equal by rounding
    t = ((step + share.clip(0, 1)) * tick).astype(np.int64)
    extra = random.poisson(noise * size * size * total * tick / 1e6)
    events = np.empty(len(t) + extra, dtype=EVENT)
    events["t"] = np.concatenate([t, random.integers(0, int(total * tick), extra)])
    where = np.concatenate([pixel, random.integers(0, size * size, extra)])
    events["x"], events["y"] = where % size, where // size
    events["p"] = np.concatenate([up, random.integers(0, 2, extra) > 0])
    return events[np.argsort(events["t"], kind="stable")]
