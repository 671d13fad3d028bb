"""Training with labels under the budget of a checkpoint: from scratch (the ceiling) and from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pcssl.config import from_dict
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.pretrained import PretrainedModel, load_model
from pcssl.objectives.supervised import segmentation_head
from pcssl.training import RunConfig, Stopped, load_checkpoint, pretrain
from pcssl.training.batches import plan_batches

FINETUNE_LR = 0.1  # of the backbone, as a part of the head's


def train_with_labels(
    checkpoint: str | Path,
    kind: Literal["supervised", "finetune"],
    scenes: Sequence[Scene],
    label: str,
    classes: int,
    folder: Path,
    seed: int,
    device: torch.device | str = "cpu",
) -> SupervisedModel:
    """Train the checkpoint's architecture on labelled scenes, for as many steps as its own run had, to whole epochs.

    What is done already in `folder`, which is of this checkpoint and these scenes, is taken from there; what was cut off goes on. Raises UserError for
    a checkpoint without the config of its run (released weights), KeyboardInterrupt after Ctrl-C, when the state is saved.
    """
    content, kept = load_checkpoint(checkpoint), folder / "checkpoint.pt"
    begun = load_checkpoint(kept) if kept.exists() else None
    if begun and begun["step"] == begun["total_steps"]:
        return load_supervised(kept, device)
    known = {f.name for f in fields(RunConfig)}
    options = {k: v for k, v in content["config"].items() if k in known}
    objective = {"name": "supervised", "label": label, "classes": classes}
    if "max_voxels" in options.get("objective", {}):
        objective["max_voxels"] = options["objective"]["max_voxels"]
    options |= {"output": str(folder), "seed": seed, "init": None, "objective": objective, "device": str(device)}
    if kind == "finetune":
        options["init"] = begun["config"]["init"] if begun else str(checkpoint)  # the same file, maybe under another path
        objective["backbone_lr"] = FINETUNE_LR
    config = from_dict(options, RunConfig, str(checkpoint))
    try:
        path = pretrain(_with_steps(config, content["total_steps"], scenes), scenes, resume=True)
    except Stopped:
        raise KeyboardInterrupt from None
    return load_supervised(path, device)


def _with_steps(config: RunConfig, steps: int, scenes: Sequence[Scene]) -> RunConfig:
    """The config with so many epochs of these scenes as make about `steps` steps, one at least, the same part of them warm-up."""
    planned = config.optimizer.epochs
    epochs = max(1, round(steps / plan_batches(scenes, config.data, 1, config.seed).per_epoch))
    warmup = config.optimizer.warmup_epochs * epochs / planned
    return replace(config, optimizer=replace(config.optimizer, epochs=epochs, warmup_epochs=warmup))


class SupervisedModel:
    """A backbone and the linear head that was trained with it."""

    def __init__(self, model: PretrainedModel, head: torch.nn.Module):
        self.model, self.head = model, head.eval()

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """(n, D) features -> (n,) classes."""
        return self.head(features).argmax(1).cpu()

    @torch.no_grad()
    def probability(self, features: Tensor) -> Tensor:
        """(n, D) features -> (n, classes)."""
        return self.head(features).softmax(1)


def load_supervised(path: str | Path, device: torch.device | str = "cpu") -> SupervisedModel:
    """A checkpoint of the `supervised` objective."""
    state = {k[5:]: v for k, v in load_checkpoint(path)["objective"].items() if k.startswith("head.")}
    if not state:
        raise UserError(f"{path} has no head: it was not trained with labels")
    classes, channels = state["1.weight"].shape
    head = segmentation_head(channels, classes)
    head.load_state_dict(state)
    return SupervisedModel(load_model(path, device), head.to(device))


def budget(checkpoint: str | Path) -> dict[str, Any]:
    """What a result should say of the labelled training: steps, epochs, batch size, learning rate."""
    content = load_checkpoint(checkpoint)
    optimizer = content["config"]["optimizer"]
    return {
        "steps": content["total_steps"], "epochs": optimizer["epochs"], "lr": optimizer["lr"],
        "batch_size": content["config"]["data"]["batch_size"], "finetune_backbone_lr": FINETUNE_LR,
    }  # fmt: skip
