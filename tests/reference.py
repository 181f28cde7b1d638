"""The official networks, rebuilt from the paper's equations in plain PyTorch: the yardstick of the package.

Nothing here is imported from the package or from snnTorch. Layers carry the official names, in the three official
layouts, the layers that are never called included: ``state_dict()`` of a reference *is* an official checkpoint.
"""

import torch
from torch import Tensor, nn

LAYOUTS = ("cifar", "imagenet", "dvs")


class Theta(torch.autograd.Function):
    """The step with Theta(0) = 1; backward, the derivative of sigmoid(4 x)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        sigma = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * sigma * (1 - sigma)


def lif(current: Tensor, v_threshold: float = 1.0, tau: float = 2.0) -> tuple[Tensor, Tensor]:
    """Equations 1 to 3, line by line, V_reset = 0: current ``[T, ...]`` -> spikes and membranes H ``[T, ...]``."""
    v = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        h = v + (x - v) / tau
        s = Theta.apply(h - v_threshold)
        v = h * (1 - s.detach())
        spikes.append(s)
        membranes.append(h)
    return torch.stack(spikes), torch.stack(membranes)


def pointwise(kind: str, dim_in: int, dim_out: int, bias: bool = True) -> nn.Module:
    """A linear map of the tokens, as the layout spells it."""
    if kind == "linear":
        return nn.Linear(dim_in, dim_out, bias=bias)
    return (nn.Conv1d if kind == "conv1d" else nn.Conv2d)(dim_in, dim_out, kernel_size=1, bias=bias)


def through(layer: nn.Module, bn: nn.Module, x: Tensor) -> Tensor:
    """BN(layer(x)) on tokens ``[T, B, N, D_in]`` -> ``[T, B, N, D_out]``, whatever the layer's own axes are."""
    t, b, n, _ = x.shape
    x = x.reshape(t * b, n, -1)
    if isinstance(layer, nn.Linear):
        x = layer(x).transpose(1, 2)
    else:
        x = x.transpose(1, 2)
        x = layer(x.unsqueeze(-1) if isinstance(layer, nn.Conv2d) else x)
    return bn(x).flatten(2).transpose(1, 2).reshape(t, b, n, -1)


class Attention(nn.Module):
    def __init__(self, layout: str, dim: int, heads: int, scale: float):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.op = "linear" if layout == "cifar" else "conv"
        kind = "linear" if layout == "cifar" else "conv1d"
        for name in ("q", "k", "v", "proj"):
            self.add_module(f"{name}_{self.op}", pointwise(kind, dim, dim, bias=layout == "cifar" or name == "proj"))
            self.add_module(f"{name}_bn", nn.BatchNorm1d(dim))

    def map(self, name: str, x: Tensor) -> Tensor:
        return through(getattr(self, f"{name}_{self.op}"), getattr(self, f"{name}_bn"), x)

    def forward(self, x: Tensor, trace: dict[str, Tensor]) -> Tensor:
        t, b, n, d = x.shape
        heads = {}
        for name in "qkv":
            trace[name] = lif(self.map(name, x))[0]
            heads[name] = trace[name].reshape(t, b, n, self.heads, d // self.heads).transpose(2, 3)
        scores = heads["q"] @ heads["k"].transpose(3, 4)
        mixed = (scores @ heads["v"]) * self.scale
        trace["attn"] = lif(mixed.transpose(2, 3).reshape(t, b, n, d), v_threshold=0.5)[0]
        trace["proj"] = lif(self.map("proj", trace["attn"]))[0]
        return trace["proj"]


class MLP(nn.Module):
    def __init__(self, layout: str, dim: int):
        super().__init__()
        kind = {"cifar": "linear", "imagenet": "conv2d", "dvs": "conv1d"}[layout]
        norm = nn.BatchNorm2d if kind == "conv2d" else nn.BatchNorm1d
        self.op = "linear" if layout == "cifar" else "conv"
        self.add_module(f"fc1_{self.op}", pointwise(kind, dim, 4 * dim))
        self.fc1_bn = norm(4 * dim)
        self.add_module(f"fc2_{self.op}", pointwise(kind, 4 * dim, dim))
        self.fc2_bn = norm(dim)

    def forward(self, x: Tensor, trace: dict[str, Tensor]) -> Tensor:
        trace["hidden"] = lif(through(getattr(self, f"fc1_{self.op}"), self.fc1_bn, x))[0]
        trace["out"] = lif(through(getattr(self, f"fc2_{self.op}"), self.fc2_bn, trace["hidden"]))[0]
        return trace["out"]


class Block(nn.Module):
    def __init__(self, layout: str, dim: int, heads: int, scale: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)  # never called
        self.attn = Attention(layout, dim, heads, scale)
        self.norm2 = nn.LayerNorm(dim)  # never called
        self.mlp = MLP(layout, dim)

    def forward(self, x: Tensor, attn_trace: dict, mlp_trace: dict) -> Tensor:
        x = self.attn(x, attn_trace) + x
        return self.mlp(x, mlp_trace) + x


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int, pool: tuple[bool, ...]):
        super().__init__()
        self.pool = pool
        widths = [channels, dim // 8, dim // 4, dim // 2, dim]
        for i, end in enumerate(("", "1", "2", "3")):
            self.add_module(f"proj_conv{end}", nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False))
            self.add_module(f"proj_bn{end}", nn.BatchNorm2d(widths[i + 1]))
        self.rpe_conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor, trace: dict[str, Tensor]) -> Tensor:
        t, b = x.shape[:2]
        for i, end in enumerate(("", "1", "2", "3")):
            x = getattr(self, f"proj_bn{end}")(getattr(self, f"proj_conv{end}")(x.flatten(0, 1)))
            x = trace[f"sps.{i}"] = lif(x.unflatten(0, (t, b)))[0]
            if self.pool[i]:
                x = nn.functional.max_pool2d(x.flatten(0, 1), 3, stride=2, padding=1).unflatten(0, (t, b))
        position = self.rpe_bn(self.rpe_conv(x.flatten(0, 1))).unflatten(0, (t, b))
        trace["sps.rpe"] = lif(position)[0]
        return x + trace["sps.rpe"]


class OfficialSpikformer(nn.Module):
    """An official network. After a call, ``trace`` maps layer names to spikes ``[T, B, C, H, W]`` or ``[T, B, N, D]``,
    and ``residual.i`` to the tokens after block i.

    Shapes: frames ``[T, B, C, H, W]`` -> logits ``[B, K]``.
    """

    def __init__(self, layout: str, dim=32, depth=2, heads=4, channels=3, classes=5, size=16, scale=0.125):
        super().__init__()
        pool = (False, False, True, True) if layout == "cifar" else (True, True, True, True)
        self.patch_embed = PatchEmbed(channels, dim, pool)
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // 2 ** sum(pool)) ** 2, dim))  # never called
        self.block = nn.ModuleList(Block(layout, dim, heads, scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)  # never called
        self.head = nn.Linear(dim, classes)

    def forward(self, frames: Tensor) -> Tensor:
        self.trace: dict[str, Tensor] = {}
        x = self.patch_embed(frames, self.trace).flatten(3).transpose(2, 3)
        for i, block in enumerate(self.block):
            attn, mlp = {}, {}
            x = self.trace[f"residual.{i}"] = block(x, attn, mlp)
            self.trace |= {f"blocks.{i}.attn.{name}": spikes for name, spikes in attn.items()}
            self.trace |= {f"blocks.{i}.mlp.{name}": spikes for name, spikes in mlp.items()}
        return self.head(x.mean(2).mean(0))


def awaken(model: nn.Module, batch: Tensor) -> None:
    """Make a network fire: livelier batch norms, and running statistics taken from one batch. Leaves it in eval mode.

    A fresh network in eval mode is silent from the second layer on, and silence agrees with everything.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 1.5, 2.5)
        nn.init.uniform_(norm.bias, 0.6, 1.4)
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(batch)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
