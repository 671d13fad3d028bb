"""The pre-training loop. It knows a method only through `Objective`."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from pcssl.config import dump_yaml, to_dict
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.models.checkpoints import load_state, read_weights, write_model
from pcssl.models.checkpoints.exported import FILE as MODEL_FILE
from pcssl.models.checkpoints.run import backbone_state
from pcssl.objectives.base import Objective
from pcssl.schedules import warmup_cosine
from pcssl.sparse import use_engine
from pcssl.sparse.engine import best_engine
from pcssl.training.bad_scenes import BadScenes
from pcssl.training.batches import StepBatches, iterate, plan_batches
from pcssl.training.checkpoint import load_checkpoint, save_checkpoint
from pcssl.training.settings import OptimizerConfig, RunConfig
from pcssl.version import commit, pcssl_version

MAX_BAD_STEPS = 20
KEPT_BATCHES = 5


class Stopped(Exception):
    """The run was asked to stop, and has saved where it is."""


Monitor = Callable[[nn.Module, int], dict[str, float]]


def pretrain(config: RunConfig, scenes: Sequence[Scene], resume: bool = False, monitor: Monitor | None = None) -> Path:
    """Train as `config` says and return the path of the checkpoint.

    monitor: called after every `config.monitor_every` epochs with the network to evaluate and the step; the
        numbers it returns are logged. It must leave random state and gradients alone.

    Writes config.yaml, checkpoint.pt, TensorBoard files and at the end model.safetensors to config.output. With `resume` a
    checkpoint that lies there is continued, to the same numbers as an uninterrupted run on
    the CPU. Raises Stopped after Ctrl-C or SIGTERM, when the state is saved, and UserError for
    what the user can mend.
    """
    output = Path(config.output)
    path = output / "checkpoint.pt"
    device = pick_device(config.device)
    seed_everything(config.seed)

    backbone = config.model.build()
    seen = _names(scenes)
    if config.init is not None:
        first = load_checkpoint(config.init)
        state = backbone_state(first)
        before = first["card"].get("scene_names")
        seen = [*dict.fromkeys([*seen, *before])] if seen and before else None
        if hasattr(backbone, "completed"):  # a pre-trained network with new parts
            state = backbone.completed(state)
        load_state(backbone, state, config.init)
    plan = plan_batches(scenes, config.data, config.optimizer.epochs, config.seed)
    total = plan.total
    try:
        objective: Objective = config.objective.build(backbone, config.data, total).to(device)
    except ValueError as error:
        raise UserError(f"objective {config.objective.name}: {error}") from error
    place = device if prepares_on_device(config.data.prepare_on, objective, device) else None
    bad_scenes = BadScenes(len(scenes), config.data.max_bad, config.data.item)
    batches = StepBatches(
        scenes, objective.sampler(), objective.collate, plan.indices, config.seed, config.data.change(),
        bad_scenes.allowed,
    )  # fmt: skip
    optimizer = make_optimizer(objective, config.optimizer)
    start = 0
    if path.exists():
        if not resume:
            raise UserError(
                f"{path} is there already: continue it with --resume, or choose another folder with output=..."
            )
        start = _restore(path, config, objective, optimizer, device, scenes)
        if start >= total:
            print(f"{path} is complete ({total} steps)", file=sys.stderr)
            if not path.with_name(MODEL_FILE).exists():
                _export(path)
            return path
    output.mkdir(parents=True, exist_ok=True)
    path.with_name(MODEL_FILE).unlink(missing_ok=True)  # of an earlier run
    (output / "config.yaml").write_text(dump_yaml(config))

    card = _card(config, objective.backbone(), len(scenes), seen)

    def save(done: int) -> None:
        save_checkpoint(path, _content(config, objective, optimizer, card, done, total, device))

    autocast = pick_precision(config.precision, device)
    writer = SummaryWriter(str(output / "tensorboard"), purge_step=start)
    progress = Progress(total, start, config.log_every, objective.counted)
    warmup = round(config.optimizer.warmup_epochs * plan.per_epoch)
    bad = 0
    objective.train()
    try:
        with use_engine(best_engine(config.engine)), stop_signal() as stop:
            pin = device.type == "cuda"
            for step, batch in iterate(batches, range(start, total), config.data.workers, pin, bad_scenes, place):
                lr = warmup_cosine(step, warmup, total, config.optimizer.lr)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group.get("factor", 1.0)
                batch = batch.to(device)
                objective.watched = progress.due(step)
                with autocast:
                    values = objective(batch, step)
                optimizer.zero_grad(set_to_none=True)
                values["loss"].backward()
                norm = float(nn.utils.clip_grad_norm_(objective.parameters(), config.optimizer.clip))
                numbers = {name: float(value.detach()) for name, value in values.items()}
                if math.isfinite(norm) and math.isfinite(numbers["loss"]):
                    optimizer.step()
                    extra = objective.after_step(step)
                    progress.add(getattr(batch, f"num_{objective.counted}"), numbers)
                    bad = 0
                else:
                    bad += 1
                    extra = {}
                    progress.skipped += 1
                    kept = _keep_bad_batch(output, step, batch, numbers, norm)
                    if bad >= MAX_BAD_STEPS:
                        raise UserError(
                            f"{bad} steps in a row up to step {step} had no finite loss or gradient; lower optimizer.lr. "
                            f"The first batches of them are kept as {kept}"
                        )
                if progress.due(step):
                    extra |= {"lr": lr, "gradient_norm": norm, "skipped_steps": progress.skipped}
                    extra["bad_scenes"] = len(bad_scenes)
                    for name, value in (progress.report(step) | extra).items():
                        writer.add_scalar(name, value, step)
                done = step + 1
                epoch = int(done / plan.per_epoch)
                if bad_scenes and epoch > int(step / plan.per_epoch):
                    print(f"epoch {epoch}: {bad_scenes}", file=sys.stderr)
                if monitor is not None and done % max(1, round(config.monitor_every * plan.per_epoch)) == 0:
                    for name, value in monitor(objective.backbone(), done).items():
                        writer.add_scalar(name, value, done)
                if done % config.checkpoint_every == 0 or done == total or stop.is_set():
                    save(done)
                if stop.is_set() and done < total:
                    raise Stopped(f"saved {path} at step {done} of {total}; continue with --resume")
    finally:
        progress.close()
        writer.close()
    _export(path)
    if stop.is_set():
        raise Stopped(f"{path} is complete ({total} steps); stopped before what comes after it")
    return path


def _export(checkpoint: Path) -> None:
    """The network alone, as a file to use and to give away."""
    write_model(checkpoint.with_name(MODEL_FILE), read_weights(checkpoint))


def _keep_bad_batch(output: Path, step: int, batch: Any, numbers: dict[str, float], norm: float) -> Path:
    """Save the batch of a step without a finite loss or gradient, for replay; at most KEPT_BATCHES of a run."""
    folder = output / "bad_steps"
    if len(list(folder.glob("*.pt"))) < KEPT_BATCHES:
        tensors = {name: _on_cpu(x) for name, x in vars(batch).items()}
        save_checkpoint(folder / f"step_{step}.pt", {"step": step, "batch": tensors, "values": numbers, "gradient_norm": norm})
    return folder


def _on_cpu(x: Any) -> Any:
    return [_on_cpu(part) for part in x] if isinstance(x, (list, tuple)) else x.cpu()


def pick_device(name: str) -> torch.device:
    """ "auto": the GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: {name!r} is no device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {name} was asked for, but torch {torch.__version__} sees no CUDA GPU here")
    return device


def prepares_on_device(setting: str, objective: Objective, device: torch.device) -> bool:
    """Whether samples are made in the training process, by `data.prepare_on`."""
    if setting == "device" and not objective.samples_on_device:
        raise UserError(
            f"data.prepare_on=device: {type(objective).__name__} makes its samples in workers only; use worker or auto"
        )
    return setting == "device" or (setting == "auto" and device.type == "cuda" and objective.samples_on_device)


def pick_precision(name: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The autocast context of a precision setting."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def make_optimizer(objective: Objective, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; only weights of linear maps and convolutions are decayed. A group's `factor` scales its rate."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, p in objective.named_parameters():
        if p.requires_grad:
            is_matrix = p.ndim >= 2 and not name.endswith("gamma")
            groups.setdefault((is_matrix, objective.lr_factor(name)), []).append(p)
    listed = [
        {"params": params, "weight_decay": config.weight_decay if decay else 0.0, "factor": factor}
        for (decay, factor), params in groups.items()
        if params
    ]
    return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, fused=True)  # a third of the time, on a CPU too


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame) -> None:
        stop.set()
        signal.signal(number, before[number])
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    for s in before:
        signal.signal(s, handle)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _content(config: RunConfig, objective: Objective, optimizer, card: dict, done: int, total: int, device) -> dict:
    backbone = objective.backbone()
    prefix = next(name for name, module in objective.named_modules() if module is backbone)
    return {
        "step": done,
        "total_steps": total,
        "config": to_dict(config),
        "objective": objective.state_dict(),
        "backbone_prefix": prefix + ".",
        "optimizer": optimizer.state_dict(),
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
        "card": card | {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")},
    }


def _names(scenes: Sequence[Scene]) -> list[str] | None:
    return list(getattr(scenes, "names", ())) or None


def _card(config: RunConfig, backbone: nn.Module, scenes: int, seen: list[str] | None) -> dict[str, Any]:
    """What a user of the weights should know of their making; plain values. seen: names of the scenes, then of those
    that the run it starts from has seen; None if not all are known."""
    return {
        "method": config.objective.name,
        "dataset": config.data.dataset.name,
        "split": config.data.split,
        "scenes": scenes,
        "scene_names": seen,
        "init": config.init,
        **config.data.card(),
        **{name: list(getattr(backbone, name)) for name in ("channels", "strides") if hasattr(backbone, name)},
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "license": "not stated",
        "version": pcssl_version(),
        "commit": commit(),
        "torch": str(torch.__version__),
    }


def _restore(path: Path, config: RunConfig, objective: Objective, optimizer, device: torch.device, scenes: Sequence[Scene]) -> int:
    content = load_checkpoint(path, device)
    then, now = content["config"], to_dict(config)
    changed = [k for k in ("data", "model", "objective", "optimizer", "seed", "init") if _without_workers(then.get(k)) != _without_workers(now[k])]
    if changed:
        raise UserError(
            f"{path} was trained with another config ({', '.join(changed)} differ); "
            f"use {path.parent / 'config.yaml'}, or another output="
        )
    names, seen, count = _names(scenes), content["card"].get("scene_names"), content["card"].get("scenes")
    if names and seen and names != seen[:count]:
        raise UserError(
            f"{path} was trained on other {config.data.item}s than are there now ({count} then, {len(names)} now); "
            "bring them back, or choose another output="
        )
    load_state(objective, content["objective"], str(path))
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"]["cpu"].cpu())
    if device.type == "cuda" and content["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(content["rng"]["cuda"].cpu(), device)
    return int(content["step"])


def _without_workers(section):
    """A section without what may differ when a run goes on."""
    free = ("workers", "prepare_on", "max_bad")
    return {k: v for k, v in section.items() if k not in free} if isinstance(section, dict) else section


class Progress:
    """Averages between reports, and the line that shows them."""

    def __init__(self, total: int, start: int, every: int, counted: str):
        self.total, self.start, self.every, self.counted = total, start, every, counted
        self.skipped = 0
        self._begin = self._last = time.monotonic()
        self._count = 0
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._interactive = sys.stderr.isatty()

    def add(self, count: int, values: dict[str, float]) -> None:
        self._count += count
        for name, value in values.items():
            self._sums[name].append(value)

    def due(self, step: int) -> bool:
        return (step + 1) % self.every == 0 or step + 1 == self.total

    def report(self, step: int) -> dict[str, float]:
        """Print the line and return the averages since the last one."""
        now = time.monotonic()
        mean = {name: sum(values) / len(values) for name, values in self._sums.items()}
        rate = mean[f"{self.counted}_per_second"] = self._count / max(now - self._last, 1e-9)
        left = (now - self._begin) / (step + 1 - self.start) * (self.total - step - 1)
        levels = " ".join(f"{v:.3f}" for k, v in sorted(mean.items()) if k.startswith("loss/"))
        levels = f" ({levels})" if levels else ""
        spread = " ".join(f"{v:.2f}" for k, v in sorted(mean.items()) if k.startswith("std/"))
        line = (
            f"step {step + 1}/{self.total}  loss {mean.get('loss', math.nan):.4f}{levels}  std ({spread})  "
            f"{f'{rate / 1000:.0f}k' if rate >= 10_000 else f'{rate:.0f}'} {self.counted}/s  ETA {_clock(left)}"
            + (f"  skipped {self.skipped}" if self.skipped else "")
        )
        print(f"\r\x1b[K{line}" if self._interactive else line, end="" if self._interactive else "\n", file=sys.stderr, flush=True)
        self._last, self._count = now, 0
        self._sums.clear()
        return mean

    def close(self) -> None:
        if self._interactive:
            print(file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
