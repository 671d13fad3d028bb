"""What operators are given and should not be: one clear error, from every engine, before anything runs."""

import pytest
import torch

from pcssl import ops
from pcssl.ops import KEY_RANGE, KernelMap
from pcssl.sparse import Geometry, available_engines, use_engine

ROWS = 2**31  # one more than 32 bits can number


@pytest.fixture(params=available_engines())
def engine(request):
    with use_engine(request.param) as chosen:
        yield chosen


def voxels(count=40):
    return torch.unique(torch.randint(0, 5, (count, 4), generator=torch.Generator().manual_seed(0)) % 5, dim=0).int()


def conv_inputs() -> dict:
    kernel_map = Geometry(voxels()).submanifold_map(3)
    features, weight = torch.randn(kernel_map.num_in, 4), torch.randn(27, 4, 6)
    return {"features": features, "weight": weight, "kernel_map": kernel_map, "bias": torch.randn(6)}


def level_inputs() -> dict:
    keys, order = torch.sort(ops.pack_keys(voxels()))
    return {"coords": voxels(), "sorted_keys": keys, "order": order}


def inputs_of(name: str) -> dict:
    """Inputs by name that the operator takes."""
    batch = torch.zeros(5, dtype=torch.int64)
    near = {"queries": torch.rand(5, 3), "query_batch": batch, "points": torch.rand(5, 3), "point_batch": batch}
    level = level_inputs()
    return {
        "sparse_conv": conv_inputs,
        "neighbor_table": lambda: {
            "out_coords": voxels(), "sorted_keys": level["sorted_keys"], "order": level["order"], "kernel": 3,
        },
        "voxelize": lambda: {"points": torch.rand(5, 3), "voxel_size": 0.1, "batch": batch},
        "curve_codes": lambda: {"coords": voxels(), "curve": "xyz_hilbert"},
        "segment_reduce": lambda: {"values": torch.rand(5, 2), "offsets": torch.tensor([0, 2, 5])},
        "interpolate": lambda: {
            "features": torch.rand(len(voxels()), 2), **level, "points": torch.rand(5, 3), "batch": batch,
        },
        "nearest": lambda: {**near, "radius": 0.5},
        "radius_neighbors": lambda: {**near, "radius": 0.5},
    }[name]()  # fmt: skip


OPERATORS = (
    "sparse_conv", "neighbor_table", "voxelize", "curve_codes", "segment_reduce", "interpolate", "nearest",
    "radius_neighbors",
)  # fmt: skip
TENSORS = [
    (operator, name)
    for operator in OPERATORS
    for name, value in inputs_of(operator).items()
    if isinstance(value, torch.Tensor)
]


def other_kind(x: torch.Tensor) -> torch.Tensor:
    return x.long() if x.is_floating_point() else x.float()


@pytest.mark.parametrize("operator, name", TENSORS)
def test_a_wrong_dtype(engine, operator, name):
    inputs = inputs_of(operator)
    inputs[name] = other_kind(inputs[name])
    with pytest.raises(TypeError, match=f"{name} must be .*got torch"):
        getattr(engine, operator)(**inputs)


@pytest.mark.parametrize("operator, name", TENSORS)
def test_a_wrong_number_of_axes(engine, operator, name):
    for wrong in (lambda x: x[None], lambda x: x[..., 0]):
        inputs = inputs_of(operator)
        inputs[name] = wrong(inputs[name])
        with pytest.raises(ValueError, match=f"{name} must be .*, got"):
            getattr(engine, operator)(**inputs)


ANY_NUMBER = {("neighbor_table", "out_coords"), ("curve_codes", "coords")}


@pytest.mark.parametrize("operator, name", [t for t in TENSORS if t not in ANY_NUMBER])
def test_a_row_too_few(engine, operator, name):
    inputs = inputs_of(operator)
    inputs[name] = inputs[name][:-1]
    with pytest.raises(ValueError, match="must be .*, got|features are|kernel offsets|bias is|must rise"):
        getattr(engine, operator)(**inputs)


@pytest.mark.parametrize("operator, name", [t for t in TENSORS if t[1] in ("coords", "out_coords", "points", "queries")])
def test_a_column_too_few(engine, operator, name):
    inputs = inputs_of(operator)
    inputs[name] = inputs[name][:, :-1]
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        getattr(engine, operator)(**inputs)


@pytest.mark.parametrize("operator, name", [t for t in TENSORS if t[0] != "curve_codes"])
def test_another_device(engine, operator, name):
    # A tensor without memory stands for one on another device.
    inputs = inputs_of(operator)
    inputs[name] = inputs[name].to("meta")
    with pytest.raises(ValueError, match="is on .*move them to one device"):
        getattr(engine, operator)(**inputs)


def test_a_map_on_another_device(engine):
    inputs = {name: x if isinstance(x, KernelMap) else x.to("meta") for name, x in conv_inputs().items()}
    with pytest.raises(ValueError, match="table is on cpu"):
        engine.sparse_conv(**inputs)


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.parametrize("operator, name", TENSORS)
def test_what_is_not_contiguous_works(engine, operator, name):
    inputs = inputs_of(operator)
    want = getattr(engine, operator)(**inputs)
    spread = torch.stack([inputs[name], inputs[name]], -1)[..., 0]
    assert not spread.is_contiguous()
    inputs[name] = spread
    got = getattr(engine, operator)(**inputs)
    for a, b in zip(tensors_of(got), tensors_of(want)):
        assert torch.equal(a, b)


def tensors_of(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result) if isinstance(result, tuple) else [result.coords, result.inverse, result.counts]


@pytest.mark.parametrize("operator, name", [t for t in TENSORS if t[0] != "sparse_conv"])
def test_more_rows_than_32_bits_can_number(engine, operator, name):
    inputs = inputs_of(operator)
    inputs[name] = inputs[name][:1].expand(ROWS, *inputs[name].shape[1:])  # one row, ROWS times
    with pytest.raises(ValueError, match="32 bits can number|with [MNPQ] = "):
        getattr(engine, operator)(**inputs)


def test_maps_of_more_rows_than_32_bits_can_number():
    table = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="more than the 2147483647 that a table can number"):
        KernelMap(table, ROWS)
    with pytest.raises(ValueError, match="32 bits can number"):
        KernelMap(table.expand(1, ROWS), 1)
    with pytest.raises(ValueError, match="32 bits can number"):
        Geometry(torch.zeros(1, 4, dtype=torch.int32).expand(ROWS, 4))


def test_a_table_of_rows_that_are_not_there():
    table = torch.tensor([[0, 3, -1]], dtype=torch.int32)
    assert KernelMap(table, 4).num_out == 3
    with pytest.raises(ValueError, match="names row 3 of an input of 3 rows"):
        KernelMap(table, 3)
    with pytest.raises(ValueError, match="as many inputs as outputs"):
        KernelMap(table, 4, symmetric=True)
    for wrong in (table.long(), table.float()):
        with pytest.raises(TypeError, match="table must be int32"):
            KernelMap(wrong, 4)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (3, 0, 1), (3, 1, 0), (-1, 1, 1)])
def test_kernels_of_no_size(engine, sizes):
    with pytest.raises(ValueError, match="must be positive"):
        engine.neighbor_table(**{**inputs_of("neighbor_table"), "kernel": sizes[0]}, stride=sizes[1], dilation=sizes[2])


@pytest.mark.parametrize("axis, value", [(0, -1), (0, 4096), (1, KEY_RANGE[0] - 1), (3, KEY_RANGE[1] + 1)])
def test_coordinates_out_of_range(engine, axis, value):
    coords = voxels()
    coords[3, axis] = value
    inputs = {**inputs_of("neighbor_table"), "out_coords": coords}
    with pytest.raises(ValueError, match="outside"):
        engine.neighbor_table(**inputs)
    with pytest.raises(ValueError, match="outside"):
        Geometry(coords)


@pytest.mark.parametrize("operator", ["voxelize", "nearest", "radius_neighbors"])
@pytest.mark.parametrize("value, message", [(1e6, "outside"), (float("nan"), "NaN"), (-float("inf"), "NaN")])
def test_points_out_of_range(engine, operator, value, message):
    for name in ("points", "queries"):
        inputs = inputs_of(operator)
        if name in inputs:
            inputs[name][2, 1] = value
            with pytest.raises(ValueError, match=message):
                getattr(engine, operator)(**inputs)


@pytest.mark.parametrize("operator", ["voxelize", "nearest", "radius_neighbors", "interpolate"])
@pytest.mark.parametrize("scene", [-1, 4096])
def test_scenes_out_of_range(engine, operator, scene):
    inputs = inputs_of(operator)
    for name in [name for name in inputs if "batch" in name]:
        wrong = inputs[name].clone()
        wrong[1] = scene
        with pytest.raises(ValueError, match="batch index"):
            getattr(engine, operator)(**{**inputs, name: wrong})


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_that_is_none(engine, radius):
    for operator in ("nearest", "radius_neighbors"):
        with pytest.raises(ValueError, match="radius must be positive"):
            getattr(engine, operator)(**{**inputs_of(operator), "radius": radius})


def test_queries_and_points_of_different_types(engine):
    inputs = inputs_of("nearest")
    with pytest.raises(TypeError, match="give both the same type"):
        engine.nearest(**{**inputs, "points": inputs["points"].double()})


def test_duplicate_voxels():
    with pytest.raises(ValueError, match="duplicate voxels"):
        Geometry(torch.zeros(2, 4, dtype=torch.int32))


def test_what_is_no_tensor(engine):
    with pytest.raises(TypeError, match="points must be floating point, got list"):
        engine.voxelize([[0.0, 0.0, 0.0]], 0.1)
