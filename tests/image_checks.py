"""What the tests of every image method ask of it."""

from __future__ import annotations

import copy

import pytest
import torch
from test_image_objectives import ROOT, batch, train, train_until

from pcssl.commands.train import ImageTrainConfig
from pcssl.config import load_config
from pcssl.training import load_checkpoint, pretrain

SHORT = ["data.batch_size=16", "data.dataset.val=1733", "optimizer.epochs=2", "checkpoint_every=3"]  # 64 images, 8 steps


def every_parameter_learns(objective, step=0):
    """One backward pass reaches all of them, and no graph stays on the objective."""
    objective.watched = True
    values = objective(batch(objective), step)
    values["loss"].backward()
    idle = [n for n, p in objective.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert not idle and any(k.startswith("std/") for k in values) and any(k.startswith("rank/") for k in values)
    assert any(m is objective.backbone() for m in objective.modules())
    copy.deepcopy(objective)


def resumes_to_the_same_weights(name, folder):
    """The shipped config, 8 steps in one go, or stopped after 5 and continued."""
    whole = load_checkpoint(train(name, folder / "whole", *SHORT))
    with pytest.raises(RuntimeError, match="stop here"):
        train_until(5, name, folder / "parts", SHORT)
    overrides = [f"output={folder / 'parts'}", "device=cpu", *SHORT]
    config = load_config(ROOT / "configs" / "image" / f"{name}.yaml", ImageTrainConfig, overrides)
    torch.manual_seed(123)
    resumed = load_checkpoint(pretrain(config, config.data.dataset.build().images("train"), resume=True))
    assert whole["step"] == resumed["step"] == 8
    assert all(torch.equal(v, resumed["objective"][k]) for k, v in whole["objective"].items())


def restored(path):
    """The objective of a checkpoint of `train`, in eval mode."""
    config = load_config(path.parent / "config.yaml", ImageTrainConfig)
    objective = config.objective.build(config.model.build(), config.data, 100)
    objective.load_state_dict(load_checkpoint(path)["objective"])
    return objective.eval()


def pixels(objective, split):
    """(N, 1, 8, 8) in -1..1: the digits it was trained on, or the others."""
    return torch.stack([2 * p.values(1) - 1 for p in objective.data.dataset.build().images(split)])
