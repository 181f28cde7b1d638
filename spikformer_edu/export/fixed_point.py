"""A Spikformer in whole numbers, in numpy alone: runs a dump of the format ``fixed`` and compares it, layer by layer.

    python fixed_point.py model.npz

This file needs nothing but numpy and can be copied. Every number is an integer, and a layer does three things:

    current  sums of weights (the input is a spike or a small integer), shifted left by F bits, plus a bias
    membrane u <- (u >> 1) + current, or current alone after a spike
    spike    u >= threshold, one threshold a channel: the scale of the weights is in it

Attention needs no weights: Q K^T counts the places where both fired (AND, then popcount), and the sum over V counts
again. Its scale, too, is in the threshold.
"""

import json
import sys
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class FixedPoint:
    """The network of a dump.

    Args:
        dump: arrays by name, as ``np.load`` gives them.

    Attributes:
        spikes: of every layer, from the last run, uint8 ``[T, B, ...]``.
        widest: bits that the membranes of the last run took, sign included.
    """

    def __init__(self, dump: Any):
        self.arrays: dict[str, Array] = {name: dump[name] for name in dump}
        self.meta: dict[str, Any] = json.loads(str(dump["meta"]))
        self.fraction: int = self.meta["fraction"]
        self.spikes: dict[str, Array] = {}
        self.widest = 0

    def fire(self, name: str, current: Array, threshold: Array) -> Array:
        """The neuron over time: currents ``[T, ...]`` -> spikes ``[T, ...]``."""
        spikes = np.zeros(current.shape, np.uint8)
        u = np.zeros_like(current[0])
        for t, now in enumerate(current):
            u = (u >> 1) + now
            self.widest = max(self.widest, int(np.abs(u).max()).bit_length() + 1)
            spikes[t] = u >= threshold
            u = u * (1 - spikes[t])
        self.spikes[name] = spikes
        return spikes

    def linear(self, name: str, x: Array, heads: int = 0) -> Array:
        """Tokens ``[T, B, N, D]`` -> spikes ``[T, B, N, K]``; with heads ``[T, B, h, N, d]``."""
        weight = self.arrays[name + ".weight"].astype(np.int64)  # [K, D]
        current = ((x.astype(np.int64) @ weight.T) << self.fraction) + self.arrays[name + ".bias"]
        threshold = self.arrays[name + ".threshold"]  # [K]
        if heads:
            current = current.reshape(*current.shape[:3], heads, -1).swapaxes(2, 3)
            threshold = threshold.reshape(heads, 1, -1)
        return self.fire(name, current, threshold)

    def conv(self, name: str, x: Array, pool: bool, steps: int = 0) -> Array:
        """Images ``[T, B, C, H, W]`` -> spikes ``[T, B, K, H, W]``; with steps, the T of one image ``[1, B, ...]``."""
        weight = self.arrays[name + ".weight"].astype(np.int64)  # [K, C, 3, 3]
        sums = np.stack([np.tensordot(windows(frame), weight, ([1, 4, 5], [1, 2, 3])) for frame in x.astype(np.int64)])
        sums = np.moveaxis(sums, -1, 2)  # [T, B, K, H, W]
        current = (sums << self.fraction) + self.arrays[name + ".bias"][:, None, None]
        if steps:
            current = np.broadcast_to(current, (steps, *current.shape[1:]))
        spikes = self.fire(name, current, self.arrays[name + ".threshold"][:, None, None])
        if not pool:
            return spikes
        return np.stack([windows(frame)[:, :, ::2, ::2].max((4, 5)) for frame in spikes])  # an OR of nine bits

    def attention(self, name: str, x: Array) -> Array:
        """Spiking self-attention: tokens ``[T, B, N, D]`` -> spikes ``[T, B, N, D]``."""
        q, k, v = (self.linear(f"{name}.{part}", x, self.meta["heads"]) for part in "qkv")
        if self.meta["qk_pool"]:
            q, k = or_of_neighbours(q), or_of_neighbours(k)
        # AND and popcount: on a processor, the d bits of a row lie in one or two words.
        packed_q, packed_k = np.packbits(q, -1), np.packbits(k, -1)
        both = packed_q[..., :, None, :] & packed_k[..., None, :, :]  # [T, B, h, N, N, d / 8]
        scores = POPCOUNT[both].sum(-1, dtype=np.int64)  # [T, B, h, N, N]
        current = (scores @ v.astype(np.int64)) << self.fraction
        mixed = self.fire(name + ".attn", current, self.arrays[name + ".attn.threshold"])
        return self.linear(name + ".proj", mixed.swapaxes(2, 3).reshape(x.shape))

    def run(self, x: Array) -> Array:
        """Integer images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]`` -> integer logits ``[B, K]``."""
        self.spikes, self.widest = {}, 0
        steps = 0 if x.ndim == 5 else self.meta["time_steps"]
        x = x if steps == 0 else x[None]
        for n, pool in enumerate(self.meta["pool"]):
            x = self.conv(f"sps.{n}", x, pool, 0 if n else steps)
        x = x.astype(np.int64) + self.conv("sps.rpe", x, False)
        x = x.reshape(*x.shape[:3], -1).swapaxes(2, 3)  # [T, B, N, D]
        for n in range(self.meta["depth"]):
            x = x + self.attention(f"blocks.{n}.attn", x)
            x = x + self.linear(f"blocks.{n}.mlp.out", self.linear(f"blocks.{n}.mlp.hidden", x))
        sums = x.sum((0, 2))  # [B, D], over time and tokens
        return sums @ self.arrays["head.weight"].astype(np.int64).T + self.arrays["head.bias"]


POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def windows(frame: Array) -> Array:
    """The 3 x 3 neighbourhood of every pixel, zeros outside: ``[B, C, H, W]`` -> ``[B, C, H, W, 3, 3]``."""
    padded = np.pad(frame, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))


def or_of_neighbours(spikes: Array) -> Array:
    """Whether a token or one beside it fired: ``[T, B, h, N, d]`` -> the same shape."""
    found = spikes.copy()
    found[..., 1:, :] |= spikes[..., :-1, :]
    found[..., :-1, :] |= spikes[..., 1:, :]
    return found


def differences(dump: Any) -> dict[str, int]:
    """Numbers that differ from the dump's, by array; empty if all are the same."""
    network = FixedPoint(dump)
    found = {"logits": network.run(dump["input"])} | {f"spikes/{name}": s for name, s in network.spikes.items()}
    return {name: wrong for name, array in found.items() if (wrong := int((array != dump[name]).sum()))}


if __name__ == "__main__":
    wrong = differences(np.load(sys.argv[1]))
    print("every spike and every logit as in the dump" if not wrong else f"differ: {wrong}")
    sys.exit(bool(wrong))
