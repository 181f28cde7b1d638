"""A training step as a CUDA graph: recorded once, then started as a whole.

Python needs longer to start the hundreds of kernels of a step than a fast GPU needs to run them. A graph starts them
all at once. It repeats the same kernels on the same addresses, so everything that changes from step to step must lie
in tensors that stay: the batch is copied into two of them, the learning rate is a tensor of the optimizer.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SpikformerError

Signature = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]


class CaptureError(SpikformerError):
    """The step does something that a CUDA graph cannot hold."""


@dataclass
class Captured:
    """A recorded step: the graph, and the tensors that it reads and writes."""

    graph: Any
    inputs: list[Tensor]
    outputs: Any


class GraphedStep:
    """A function of tensors on a GPU that is recorded as a CUDA graph, for each shape of its inputs.

    Every call does the work exactly once. The first ``warmup`` calls run it as it is, on a stream of their own, as
    PyTorch asks for: libraries set themselves up, kernels are compiled, the optimizer makes its state. The next call
    records it, which computes nothing, and starts the graph. All later calls copy their inputs and start the graph.

    Args:
        work: the function. It must not wait for the device, and what it keeps between calls must stay at its address.
            It sets gradients to None first: they then lie in the memory of the graph.
        warmup: number of calls before the recording, for each shape of the inputs.

    Returns of a call: what ``work`` returned. Its tensors are the same ones in every call with these shapes, and the
    next such call overwrites them.

    Raises:
        CaptureError: the work cannot be recorded. Nothing was computed by that call.
    """

    def __init__(self, work: Callable[..., Any], warmup: int = 3):
        self.work, self.warmup = work, warmup
        self.calls: Counter[Signature] = Counter()
        self.captured: dict[Signature, Captured] = {}
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None  # the memory that all graphs share: only one of them runs at a time

    def __call__(self, *inputs: Tensor) -> Any:
        key = signature(*inputs)
        if key not in self.captured:
            self.calls[key] += 1
            if self.calls[key] <= self.warmup:
                return self.warm_up(*inputs)
            self.captured[key] = self.capture(*inputs)
        step = self.captured[key]
        for place, tensor in zip(step.inputs, inputs, strict=True):
            place.copy_(tensor)
        step.graph.replay()
        return step.outputs

    def warm_up(self, *inputs: Tensor) -> Any:
        """Do the work without a graph, on the stream that it will be recorded on.

        Args:
            inputs: the inputs of the work.
        """
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            outputs = self.work(*inputs)
        here.wait_stream(self.stream)
        return outputs

    def capture(self, *inputs: Tensor) -> Captured:
        """Record the work.

        Args:
            inputs: inputs like those that the graph will get.

        Raises:
            CaptureError: it cannot be recorded.
        """
        here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        places = [tensor.detach().clone() for tensor in inputs]  # with the same strides
        try:
            # "thread_local": the thread that pins batches in memory may go on meanwhile.
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                outputs = self.work(*places)
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # the block above does not always leave it behind
            cause = error.__context__ or error  # ending a recording that failed raises an error of its own
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise CaptureError(f"the training step cannot be a CUDA graph ({reason}): give --cuda-graph off") from error
        return Captured(graph, places, outputs)


def signature(*tensors: Tensor) -> Signature:
    """What must be equal for a graph to take tensors: shapes, strides and dtypes.

    Args:
        tensors: the inputs of a step.
    """
    return tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
