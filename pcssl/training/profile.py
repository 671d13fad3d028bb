"""Where a training step's time goes, and what it would need elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from pcssl.models.hunet import AttentionBlock, RMSNorm
from pcssl.objectives.base import Objective
from pcssl.sparse.conv import _Conv

KINDS = {"convolution": _Conv, "attention": AttentionBlock, "norm": (RMSNorm, nn.LayerNorm)}
FP32 = nullcontext()
_MARK = "pcssl kind: "
_BACKWARD = "autograd::engine::evaluate_function"


@dataclass(frozen=True)
class StepProfile:
    """seconds: median a stage. kinds: seconds of self time a kind of work, forward and backward together.
    watching: seconds that health metrics add to a step that is logged. saved: bytes that autograd keeps for the backward
    pass of a batch of `counted` voxels. flops: of the matrix products, convolutions and attention of its step.
    """

    voxels: float
    seconds: dict[str, float]
    kinds: dict[str, float]
    watching: float
    saved: int
    flops: float
    counted: int

    @property
    def core(self) -> float:
        """Share of convolution, attention and norm."""
        total = sum(self.kinds.values())
        return sum(self.kinds.get(kind, 0.0) for kind in KINDS) / total if total else 0.0


def profile_step(
    objective: Objective, optimizer: torch.optim.Optimizer, batches: Sequence[Callable[[], Any]], clip: float = 3.0,
    autocast: AbstractContextManager = FP32,
) -> StepProfile:  # fmt: skip
    """Train a step on each batch, timed; the first one is a warm-up. Then once more the last one, profiled.

    batches: functions that make a batch, so that making it is timed as well. autocast: for forward passes.
    """
    stages: dict[str, list[float]] = defaultdict(list)
    voxels = []
    for number, make in enumerate(batches):
        clock = _Clock()
        batch = make()
        clock("samples")
        _step(objective, optimizer, batch, number, clip, clock, autocast)
        voxels.append(batch.num_voxels)
        if number:
            for name, seconds in clock.seconds.items():
                stages[name].append(seconds)
    saved, flops = needs(objective, batch, autocast)
    kinds = _by_kind(objective, lambda: _step(objective, optimizer, batch, 0, clip, _Clock(), autocast))
    with autocast:
        watching = _watching(objective, batch, max(3, len(batches) - 1))
    medians = {name: median(values) for name, values in stages.items()}
    return StepProfile(sum(voxels) / len(voxels), medians, kinds, watching, saved, flops, batch.num_voxels)


@torch.no_grad()
def _watching(objective: Objective, batch, repeats: int) -> float:
    """Median of what a watched forward pass takes longer than the plain one beside it."""
    before, gaps = objective.watched, []
    try:
        for _ in range(repeats):
            clock = _Clock()
            for name, objective.watched in (("plain", False), ("watched", True)):
                objective(batch, 0)
                clock(name)
            gaps.append(clock.seconds["watched"] - clock.seconds["plain"])
    finally:
        objective.watched = before
    return max(0.0, median(gaps))


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _step(objective: Objective, optimizer, batch, number: int, clip: float, clock: _Clock, autocast: AbstractContextManager) -> None:
    with autocast:
        loss = objective(batch, number)["loss"]
    clock("forward")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clock("backward")
    nn.utils.clip_grad_norm_(objective.parameters(), clip)
    optimizer.step()
    objective.after_step(number)
    clock("optimizer")


def needs(objective: nn.Module, batch, autocast: AbstractContextManager = FP32) -> tuple[int, float]:
    """Bytes that a forward pass keeps for the backward one, and operations of both."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with FlopCounterMode(display=False, custom_mapping=_operations()) as counter, saved_tensors_hooks(pack, lambda x: x):
        with autocast:
            loss = objective(batch, 0)["loss"]
        loss.backward()
    return sum(kept.values()), float(counter.get_total_flops())


def _operations() -> dict[Any, Callable[..., int]]:
    """Operations of what torch's own counter does not know, from the arguments of a call."""

    def convolution(features, weight, bias, table, *_, **__) -> int:
        return 2 * int((table >= 0).sum()) * weight.shape[-1] * weight.shape[-2]

    def weight_gradient(features, grad, table, **_) -> int:
        return 2 * int((table >= 0).sum()) * features.shape[1] * grad.shape[1]

    def attention(query, key, value, *_, **__) -> int:
        return 4 * query.shape[:-1].numel() * key.shape[-2] * query.shape[-1]

    def attention_backward(grad, query, key, *_, **__) -> int:
        return 10 * query.shape[:-1].numel() * key.shape[-2] * query.shape[-1]

    aten = torch.ops.aten
    found = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    if hasattr(torch.ops.pcssl, "sparse_conv"):
        found |= {torch.ops.pcssl.sparse_conv: convolution, torch.ops.pcssl.sparse_conv_weight_grad: weight_gradient}
    for formula in found.values():
        formula._get_raw = True  # with the tensors, not their shapes
    return found


def _by_kind(objective: Objective, step: Callable[[], None]) -> dict[str, float]:
    """Self time of every operation, under the kind of the innermost module that called it; "rest" is none of them.

    An operation of the backward pass belongs where its forward operation does: autograd numbers both alike.
    """
    handles, open_marks = [], []
    for module in objective.modules():
        kind = next((k for k, types in KINDS.items() if isinstance(module, types)), None)
        if kind:
            handles.append(module.register_forward_pre_hook(lambda *_, kind=kind: _enter(open_marks, kind)))
            handles.append(module.register_forward_hook(lambda *_: open_marks.pop().__exit__(None, None, None)))
    try:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step()
    finally:
        for handle in handles:
            handle.remove()
    events = [e for e in found.events() if not e.name.startswith(_MARK)]
    backward = [any(e.name.startswith(_BACKWARD) for e in _ancestors(event)) for event in events]
    forward = {e.sequence_nr: _kind(e) for e, late in zip(events, backward) if not late and e.sequence_nr >= 0}
    seconds: dict[str, float] = defaultdict(float)
    for event, late in zip(events, backward):
        kind = _kind(event)
        if late:
            numbers = (e.sequence_nr for e in _ancestors(event) if e.name.startswith(_BACKWARD))
            kind = forward.get(next(numbers), "rest")
        seconds[kind] += event.self_cpu_time_total / 1e6
    return dict(seconds)


def _enter(marks: list, kind: str) -> None:
    marks.append(record_function(_MARK + kind))
    marks[-1].__enter__()


def _ancestors(event):
    while event is not None:
        yield event
        event = event.cpu_parent


def _kind(event) -> str:
    return next((e.name[len(_MARK):] for e in _ancestors(event) if e.name.startswith(_MARK)), "rest")
