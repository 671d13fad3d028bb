"""Samples made on the training device are those that workers make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_msm import objective, room
from test_training import Rooms, config, same, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pcssl.data.crops import SceneChange
from pcssl.errors import UserError
from pcssl.objectives.supervised import SupervisedConfig, SupervisedSampler
from pcssl.sparse import use_engine
from pcssl.training import pretrain
from pcssl.training.bad_scenes import BadScenes
from pcssl.training.batches import BatchesByCount, StepBatches, iterate
from pcssl.training.trainer import prepares_on_device

CPU = torch.device("cpu")


def labelled(i: int, n: int = 600):
    return replace(room(i, n), labels={"segment20": torch.arange(n, dtype=torch.int32) % 20})


@pytest.fixture(scope="module")
def scenes():
    return Rooms(labelled(i) for i in range(5))


WHOLE = SceneChange()


def msm_batches(scenes, change=WHOLE, allowed=0):
    msm = objective(max_voxels=250)
    return StepBatches(
        scenes, msm.sampler(), msm.collate, BatchesByCount(len(scenes), 2, 3, 0).indices, 0, change, allowed
    )


@pytest.mark.parametrize("change", [WHOLE, SceneChange(crop=1.5, mix=0.5)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_device_makes_the_batches_that_workers_make(scenes, change, workers):
    batches = msm_batches(scenes, change)
    by_worker = dict(iterate(batches, range(4), 0, False, BadScenes(5, 0)))
    on_device = dict(iterate(batches, range(4), workers, False, BadScenes(5, 0), CPU))
    for step, batch in by_worker.items():
        for name, value in vars(batch).items():
            assert torch.equal(value, getattr(on_device[step], name)), name


def test_a_scene_that_cannot_be_sampled_is_replaced_by_the_same_one(scenes):
    scenes = Rooms([*scenes[:4], replace(scenes[4], color=None)])
    found = []
    for device in (None, CPU):
        bad = BadScenes(5, 0.2)
        batches = dict(iterate(msm_batches(scenes, allowed=1), range(6), 0, False, bad, device))
        assert len(bad) == 1
        found.append(torch.cat([batch.features for batch in batches.values()]))
    assert torch.equal(*found)


def test_a_run_is_the_same_and_can_go_on_elsewhere(tmp_path, scenes):
    runs = [
        pretrain(config(tmp_path / where, data={"prepare_on": where}, optimizer={"epochs": 1}), scenes)
        for where in ("worker", "device")
    ]
    assert same(*map(weights, runs))
    auto = config(tmp_path / "device", data={"prepare_on": "auto"}, optimizer={"epochs": 1})
    assert pretrain(auto, scenes, resume=True) == runs[1]  # complete already, and not another config


def test_who_decides():
    msm = objective()
    assert prepares_on_device("device", msm, CPU) and not prepares_on_device("auto", msm, CPU)
    assert prepares_on_device("auto", msm, torch.device("cuda")) and not prepares_on_device("worker", msm, torch.device("cuda"))
    msm.samples_on_device = False
    assert not prepares_on_device("auto", msm, torch.device("cuda"))
    with pytest.raises(UserError, match="prepare_on=device: MSM makes its samples in workers only"):
        prepares_on_device("device", msm, CPU)


AWAY = torch.device("meta")  # any but the CPU that torch knows without a driver


class Away(torch.Tensor):
    """A tensor that says it is on a device that is not there; its values are on the CPU."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=AWAY
        )

    def __init__(self, value):
        self.value = value

    def tolist(self):
        return self.value.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class Devices(TorchDispatchMode):
    """Within it tensors move to AWAY and back, and one of the CPU does not mix with one that is away."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


INDEXING = ("aten.index.", "aten.index_put", "aten.copy_", "aten._to_copy")  # these take both, as on a GPU


def dispatch(func, args, kwargs):
    tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away = any(isinstance(x, Away) for x in tensors)
    if away and not str(func).startswith(INDEXING):
        mixed = [x for x in tensors if not isinstance(x, Away) and x.ndim]
        assert not mixed, f"{func} of a tensor that is away and one of the CPU"
    target = kwargs.get("device")
    if target is not None:
        away = torch.device(target) == AWAY
        kwargs = {**kwargs, "device": CPU}
    args, kwargs = tree_map(lambda x: x.value if isinstance(x, Away) else x, (args, kwargs))
    out = func(*args, **kwargs)
    if func in (torch.ops.aten._local_scalar_dense.default,) or not away:
        return out
    return tree_map(lambda x: Away(x) if isinstance(x, torch.Tensor) else x, out)


@pytest.mark.parametrize("method", ["msm", "supervised"])
def test_no_tensor_of_the_cpu_meets_one_of_the_device(method):
    scene = labelled(0)
    if method == "msm":
        sampler = objective(max_voxels=250).sampler()
    else:
        sampler = SupervisedSampler(SupervisedConfig(max_voxels=250, points=100), objective().data)
    with use_engine("reference"):
        here = sampler(scene, torch.Generator().manual_seed(3))
        with Devices():
            there = sampler(scene.to(AWAY), torch.Generator().manual_seed(3))
    pairs = zip(torch.utils._pytree.tree_leaves(_tensors(here)), torch.utils._pytree.tree_leaves(_tensors(there)))
    for a, b in pairs:
        assert isinstance(b, Away) and torch.equal(a, b.value)


def _tensors(x):
    if isinstance(x, torch.Tensor):
        return x
    return [_tensors(value) for value in (x if isinstance(x, tuple) else vars(x).values())]


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_gpu_makes_the_samples_of_the_cpu(scenes, engine):
    batches = msm_batches(scenes)
    with use_engine(engine):
        by_worker = dict(iterate(batches, range(4), 0, False, BadScenes(5, 0)))
        on_device = dict(iterate(batches, range(4), 2, True, BadScenes(5, 0), torch.device("cuda")))
    for step, batch in by_worker.items():
        other = on_device[step]
        assert other.coords.is_cuda
        # Rounding may move a point on a voxel's border.
        assert abs(other.num_voxels - batch.num_voxels) <= 0.01 * batch.num_voxels
        assert abs(int(other.crop.sum()) - int(batch.crop.sum())) <= 0.02 * batch.num_voxels
