"""Where to compute: one device, or one of several processes that ``torchrun`` started."""

import os
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import SpikformerError

Value = TypeVar("Value")


@dataclass(frozen=True)
class DistributedContext:
    """This process among all that train together.

    Attributes:
        device: device that this process computes on.
        rank: number of this process, from 0; process 0 writes files.
        world: number of processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def all_reduce_sum(self, *numbers: float) -> list[float]:
        """The sum over all processes of each number.

        Args:
            numbers: the numbers of this process.
        """
        if self.world == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes.

        Args:
            tensor: the tensor of this process, of the same shape in all.
        """
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.world

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer.

        Args:
            flag: the flag of this process.
        """
        return self.all_reduce_sum(float(flag))[0] > 0

    def broadcast(self, value: Value) -> Value:
        """The value of process 0, for all.

        Args:
            value: the value of this process; any object that can be pickled.
        """
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def sync_buffers(self, module: nn.Module) -> None:
        """Copy the buffers of process 0's network, the running statistics of its norms, to all processes.

        Args:
            module: the network of this process.
        """
        if self.world > 1:
            for buffer in module.buffers():
                if buffer.numel():  # a neuron at rest has an empty state
                    dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait until all processes have come to this line."""
        self.all_reduce_sum(0)


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", ...; "auto": a GPU if there is one, else the CPU.

    Raises:
        SpikformerError: unknown device, or none such on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "meta":  # it holds no numbers
            raise RuntimeError
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SpikformerError(f"device {name!r} is not available on this machine: use --device auto or cpu") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # also for kernels and new tensors that name no device
    return device


def init_distributed(device: str) -> DistributedContext:
    """Join the processes that ``torchrun`` started, or compute alone on a device.

    Args:
        device: name of the device, as for ``choose_device``; with GPUs each process of ``torchrun`` has its own.

    Raises:
        SpikformerError: no such device, not started by ``torchrun``, or the other processes cannot be reached.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return DistributedContext(choose_device(device))
    if "LOCAL_RANK" not in os.environ:
        raise SpikformerError(f"WORLD_SIZE={world} without LOCAL_RANK: start with torchrun, or unset WORLD_SIZE")
    if not os.environ["LOCAL_RANK"].isdecimal():
        raise SpikformerError(f"LOCAL_RANK={os.environ['LOCAL_RANK']} is no number: start with torchrun")
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu and local >= torch.cuda.device_count():
        raise SpikformerError(f"{torch.cuda.device_count()} GPUs here: give torchrun no larger --nproc-per-node")
    chosen = torch.device("cuda", local) if on_gpu else choose_device("cpu" if device == "auto" else device)
    if on_gpu:
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise SpikformerError(f"cannot reach the other processes: {str(error).splitlines()[0]}") from None
    return DistributedContext(chosen, dist.get_rank(), dist.get_world_size())


def shutdown() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_available() and dist.is_initialized():
        # Old PyTorch versions (2.6 does, 2.15 does not) hold Python's lock while they wait for gloo's threads to end.
        # They never return if a thread needs the lock to free the tensors of the last message: let it do so first.
        time.sleep(0.1)
        dist.destroy_process_group()


def lost_peers(error: Exception) -> bool:
    """Whether an error only says that another process has ended."""
    return any(word in str(error) for word in ("onnection closed", "onnection reset", "gloo", "NCCL"))


class _Total(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum of their gradients, since all of them use the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Total.forward(ctx, grad)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of all processes; unlike torch's own it runs on any device.

    Args:
        features: number of features.
        eps: added to the variance, against division by zero.
        momentum: share of the new statistics in the running ones.

    Attributes:
        count: number of values of a feature in the last training batch, in all processes; their shares may differ.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, eps: float, momentum: float):
        super().__init__(features, eps, momentum)
        self.count: Tensor | None = None

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        dtype = x.dtype
        x = x.to(self.weight.dtype)  # sums over many samples need the precision
        share = x.new_full([1], x.numel() // x.shape[1])
        total, count = _Total.apply(torch.cat([x.sum(dims), share])).split([x.shape[1], 1])
        self.count = count = count.detach()
        mean = total / count
        centred = x - mean.view(shape)
        var = _Total.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)  # each process has a value: count > 1
        scale = self.weight / (var + self.eps).sqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(dtype)


def sync_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm in a module by one over all processes, in place, with the same tensors."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            assert child.momentum is not None  # a mean over all batches, which no norm here has
            norm = SyncBatchNorm(child.num_features, child.eps, child.momentum).to(child.weight)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm.train(child.training))
        else:
            sync_batch_norm(child)
