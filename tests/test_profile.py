"""The profile of a training step: its stages, kinds and needs add up."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from test_msm import batch_of, objective, room
from torch import nn

from pcssl.cli import main
from pcssl.sparse import Geometry, SparseTensor, SubmanifoldConv, use_engine
from pcssl.training.profile import KINDS, _watching, needs, profile_step
from pcssl.training.settings import OptimizerConfig
from pcssl.training.trainer import make_optimizer


@pytest.fixture(scope="module")
def found():
    msm = objective()
    return profile_step(msm, make_optimizer(msm, OptimizerConfig()), [lambda i=i: batch_of(msm, seed=i) for i in range(3)])


def test_kinds_of_work_are_told_apart(found):
    assert {*KINDS, "rest"} == set(found.kinds) and all(seconds > 0 for seconds in found.kinds.values())
    assert 0.2 < found.core < 1
    assert set(found.seconds) == {"samples", "forward", "backward", "optimizer"}


def test_health_metrics_are_timed_beside_plain_steps():
    calls = []

    class Watched(nn.Module):
        watched = False

        def forward(self, batch, step):
            calls.append(self.watched)

    watched = Watched()
    assert _watching(watched, None, 3) >= 0 and calls == [False, True] * 3 and not watched.watched


def test_operations_of_a_convolution_are_counted():
    """Forward, input and weight gradient of a convolution alone, in both engines that count differently."""
    coords = torch.cartesian_prod(*[torch.arange(n) for n in (1, 4, 4, 4)]).int()

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = SubmanifoldConv(8, 16, 3, bias=False)

        def forward(self, batch, step):
            return {"loss": self.conv(SparseTensor(batch, Geometry(coords))).features.square().sum()}

    pairs = sum((4 - abs(x)) * (4 - abs(y)) * (4 - abs(z)) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1))
    for engine in ("reference", "auto"):
        with use_engine(engine):
            saved, flops = needs(One(), torch.randn(64, 8, requires_grad=True))
        assert flops == 3 * 2 * pairs * 8 * 16
        assert saved >= 64 * 16 * 4  # the square keeps its input


def test_the_command_prints_a_profile(tmp_path, capsys):
    for i in range(2):
        scene, target = room(i, 700), tmp_path / "data" / "train" / f"room{i}"
        target.mkdir(parents=True)
        for name in ("coord", "color", "normal"):
            np.save(target / f"{name}.npy", getattr(scene, name).numpy())
    (tmp_path / "tiny.yaml").write_text(
        f"""
output: {tmp_path / "out"}
data: {{dataset: {{name: folder, root: {tmp_path / "data"}}}, voxel_size: 0.2, batch_size: 1, workers: 0}}
model: {{name: hunet, channels: [8, 16], decoder_channels: [8, 16], blocks: [1, 1], decoder_blocks: [1, 1],
  attention: [0, 1], decoder_attention: [0, 1], heads: [1, 2], decoder_heads: [1, 2], window: 8}}
objective: {{name: msm}}
optimizer: {{epochs: 1, warmup_epochs: 0}}
device: cpu
"""
    )
    assert main(["profile", str(tmp_path / "tiny.yaml"), "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("forward", "convolution", "MFLOP a voxel", "kept for the backward pass", "health metrics"))
    assert main(["profile", str(tmp_path / "tiny.yaml"), "--steps", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err

    def told(*overrides):
        """Thousands of voxels of a step, kB that a voxel keeps."""
        assert main(["profile", str(tmp_path / "tiny.yaml"), *overrides, "--steps", "1"]) == 0
        out = capsys.readouterr().out
        return float(re.search(r"step of ([\d.]+)k voxels", out)[1]), float(re.search(r"memory: ([\d.]+) kB", out)[1])

    whole = told()
    assert told("data.crop=0.5")[0] < 0.5 * whole[0], "not the samples of the config"
    assert told("data.max_voxels=100000")[0] > 1.5 * whole[0], "not the batches of the config"
    assert told("precision=bf16")[1] < 0.9 * whole[1], "not in the precision of the config"
    np.save(tmp_path / "data" / "train" / "room0" / "coord.npy", np.zeros((0, 3)))
    assert main(["profile", str(tmp_path / "tiny.yaml"), "--steps", "2"]) == 2
    assert "room0" in capsys.readouterr().err
