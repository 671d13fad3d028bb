"""Masked Scene Modeling: what must hold of the objective."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from test_hunet import SMALL
from torch.nn import functional as F

from pcssl.config import component
from pcssl.data.scene import Scene
from pcssl.data.settings import DataConfig
from pcssl.data.transforms import AugmentConfig
from pcssl.data.views import Points, voxel_view
from pcssl.models import HUNet
from pcssl.objectives.msm import MSM, MSMConfig, Whitening, level_means
from pcssl.objectives.teacher import Teacher
from pcssl.ops import nearest
from pcssl.sparse import Geometry, SparseTensor
from pcssl.statistics import effective_rank, feature_std

STILL = AugmentConfig(
    scale=(1.0, 1.0), rotate_z=0, tilt=0, flip=0, jitter=0, elastic_probability=0, color_jitter_probability=0,
    auto_contrast_probability=0, color_translation_probability=0, color_noise_probability=0,
)


def room(seed=0, n=3000):
    """Points on a floor and two walls of a 3 x 2 x 2 m room."""
    rng = torch.Generator().manual_seed(seed)
    uv = torch.rand(n, 2, generator=rng)
    face = torch.randint(3, (n,), generator=rng)
    zero = torch.zeros(n)
    x = torch.stack([uv[:, 0] * 3, uv[:, 1] * 2, zero], 1)
    x[face == 1] = torch.stack([uv[:, 0] * 3, zero, uv[:, 1] * 2], 1)[face == 1]
    x[face == 2] = torch.stack([zero, uv[:, 0] * 2, uv[:, 1] * 2], 1)[face == 2]
    normal = F.one_hot(2 - face, 3).float()
    color = torch.randint(0, 256, (n, 3), generator=rng).to(torch.uint8)
    return Scene(x, color, normal, name=f"room{seed}")


def data_config(augment=None):
    return DataConfig(component("dataset", "folder", root="none"), voxel_size=0.1, augment=augment or AugmentConfig())


def objective(augment=None, total=100, **options):
    torch.manual_seed(0)
    return MSM(MSMConfig(**options), HUNet(SMALL), data_config(augment), total)


def batch_of(msm, seed=0, scenes=2):
    sampler = msm.sampler()
    return msm.collate([sampler(room(i), torch.Generator().manual_seed(seed + i)) for i in range(scenes)])


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_where_nothing_is_hidden_the_decoder_works_on_the_encoders_geometry(ratio):
    """Whose neighbour maps are then there already; the crop is a part of the view."""
    msm = objective(mask_ratio=ratio, crop=(0.5, 0.5)).eval()
    batch, given, encode = batch_of(msm), [], msm.student.encode
    msm.student.encode = lambda x: given.extend(encode(x)) or given
    levels = msm.predict(batch)[0]
    assert len(levels[0].features) == int(batch.crop.sum()) < len(batch.crop)
    assert [a.geometry is b.geometry for a, b in zip(given, levels)] == [ratio == 0] * len(levels)


def test_hidden_voxels_do_not_reach_the_student_encoder():
    """Other features, or other coordinates, at hidden voxels leave every encoder level as it is."""
    msm = objective().eval()
    batch = batch_of(msm)
    seen = {}

    def encode(b):
        visible = b.crop & ~b.hidden
        return msm.student.encode(SparseTensor(b.features[visible], Geometry(b.coords[visible])))

    original = HUNet.encode

    def spy(self, x):
        if self is msm.student:
            seen["coords"], seen["features"] = x.coords, x.features
        return original(self, x)

    HUNet.encode = spy
    try:
        msm(batch, 0)
        coords, features = seen["coords"], seen["features"]
        changed = type(batch)(batch.coords, batch.features.clone(), batch.origin, batch.crop, batch.hidden)
        changed.features[batch.hidden] = 1e3
        msm(changed, 0)
    finally:
        HUNet.encode = original
    assert torch.equal(coords, seen["coords"]) and torch.equal(features, seen["features"])
    hidden = {tuple(c) for c in batch.coords[batch.hidden].tolist()}
    assert hidden and not hidden & {tuple(c) for c in coords.tolist()}
    # Nor do hidden voxels leave a trace at coarser levels: whole coarsest cells are hidden.
    for level in encode(batch):
        factor = level.stride
        there = {(b, x // factor, y // factor, z // factor) for b, x, y, z in hidden}
        assert not there & {tuple(c) for c in level.coords.tolist()}


def test_predictions_do_not_depend_on_hidden_features():
    msm = objective().eval()
    batch = batch_of(msm)
    changed = type(batch)(batch.coords, batch.features.clone(), batch.origin, batch.crop, batch.hidden)
    changed.features[batch.hidden] += 5
    for a, b in zip(msm.predict(batch)[0], msm.predict(changed)[0]):
        assert torch.equal(a.features, b.features)


def test_without_mask_and_crop_the_student_is_the_plain_forward():
    msm = objective(mask_ratio=0.0, crop=(1.0, 1.0)).eval()
    batch = batch_of(msm)
    assert batch.crop.all() and not batch.hidden.any()
    levels, seen = msm.predict(batch)
    plain = msm.student(SparseTensor.from_coords(batch.features, batch.coords))
    assert all(mark.all() for mark in seen)
    for a, b in zip(levels, plain):
        assert torch.equal(a.coords, b.coords) and torch.equal(a.features, b.features)


def test_nothing_hidden_but_cropped_decodes_the_crop():
    """On another geometry object with the same voxels (tokens unused) the result is the same, too."""
    msm = objective(mask_ratio=0.0, crop=(0.5, 0.5)).eval()
    batch = batch_of(msm)
    assert 0 < int(batch.crop.sum()) < len(batch.crop)
    plain = msm.student(SparseTensor.from_coords(batch.features[batch.crop], batch.coords[batch.crop]))
    encoded = msm.student.encode(SparseTensor(batch.features[batch.crop], Geometry(batch.coords[batch.crop])))
    geometries = [Geometry(batch.coords[batch.crop])]
    for _ in encoded[1:]:
        geometries.append(geometries[-1].coarser()[0])
    tokens = [torch.full((c,), torch.nan) for c in msm.student.channels]
    for a, b in zip(msm.student.decode(encoded, geometries, tokens), plain):
        assert torch.allclose(a.features, b.features, atol=1e-5)


def test_every_level_has_hidden_voxels_and_the_mask_is_by_cells():
    msm = objective()
    batch = batch_of(msm)
    _, seen = msm.predict(batch)
    assert all((~mark).any() and mark.any() for mark in seen)
    cell = torch.cat([batch.coords[:, :1], batch.coords[:, 1:] // msm.student.strides[-1]], 1)[batch.crop]
    hidden = batch.hidden[batch.crop]
    cells, of_row = cell.unique(dim=0, return_inverse=True)
    per_cell = torch.zeros(len(cells)).index_add_(0, of_row, hidden.float())
    size = torch.bincount(of_row)
    assert ((per_cell == 0) | (per_cell == size)).all()
    for view in range(4):
        mine = cells[:, 0] == view
        assert abs(int((per_cell[mine] > 0).sum()) - round(0.4 * int(mine.sum()))) <= 1


def test_masks_of_the_two_views_differ():
    sample = objective().sampler()(room(), torch.Generator().manual_seed(0))
    places = [view.origin[hidden] for view, hidden in zip(sample.views, sample.hidden)]
    near = torch.cdist(*places).amin(1) < 0.1
    assert not near.all()


def test_gradient_flows_to_the_student_only():
    msm = objective()
    out = msm(batch_of(msm), 0)
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in msm.teacher.parameters())
    missing = [n for n, p in msm.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in msm.parameters() if p.grad is not None)
    assert all(float(p.grad.abs().sum()) > 0 for p in msm.tokens.values())


def test_teacher_is_an_average_in_eval_mode():
    msm = objective(momentum=(0.9, 0.9))
    msm.train()
    assert msm.student.training and not any(m.training for m in msm.teacher.modules())
    before = [p.clone() for p in msm.teacher.parameters()]
    with torch.no_grad():
        for p in msm.student.parameters():
            p.add_(1.0)
    msm.after_step(0)
    for old, new in zip(before, msm.teacher.parameters()):
        assert torch.allclose(new, old + 0.1, atol=1e-6)


def test_momentum_is_a_cosine_over_all_steps():
    msm = objective(total=200, momentum=(0.996, 1.0))
    values = [msm.after_step(step)["momentum"] for step in range(200)]
    assert values[0] == 0.996 and values == sorted(values) and values[-1] < 1.0
    assert math.isclose(values[100], 0.998, abs_tol=1e-9)
    assert math.isclose(values[50], 0.996 + 0.004 * (1 - math.cos(math.pi / 4)) / 2, abs_tol=1e-9)


def test_teacher_copies_do_not_follow_the_student():
    network = torch.nn.Linear(2, 2)
    teacher = Teacher(network)
    with torch.no_grad():
        network.weight.zero_()
    assert not torch.equal(teacher.network.weight, network.weight)


@pytest.mark.parametrize(
    "augment",
    [
        STILL,
        AugmentConfig(**{**vars(STILL), "rotate_z": 180.0, "tilt": 3.0}),
        AugmentConfig(**{**vars(STILL), "flip": 0.5}),
        AugmentConfig(**{**vars(STILL), "scale": (0.9, 1.1)}),
        AugmentConfig(),
    ],
    ids=["still", "rotation", "flip", "scale", "all"],
)
@pytest.mark.parametrize("matching", ["nearest", "trilinear"])
def test_matches_are_the_same_place_in_the_other_view(augment, matching):
    """Checked on the points themselves: voxels that match have points of the scene near each other."""
    msm = objective(augment, matching=matching)
    batch = batch_of(msm, scenes=2)
    predictions, seen = msm.predict(batch)
    whole = Geometry(batch.coords)
    own = level_means(predictions[0].geometry, batch.origin[batch.crop], len(predictions))
    other = level_means(whole, batch.origin, len(predictions))
    geometry = whole
    for i, prediction in enumerate(predictions):
        geometry = geometry.coarser()[0] if i else geometry
        # Features that say which place they belong to.
        target = SparseTensor(torch.cat([other[i], geometry.batch[:, None].float()], 1), geometry)
        rows = torch.nonzero(~seen[i])[:, 0]
        found, wanted = msm._targets(prediction, rows, own[i], target, other[i])
        assert found.float().mean() > 0.9 and len(wanted) == int(found.sum())
        rows = rows[found]
        torch.testing.assert_close(wanted[:, 3], (prediction.batch[rows] ^ 1).float())  # same scene, other view
        distance = (own[i][rows] - wanted[:, :3]).norm(dim=1)
        assert float(distance.max()) <= 0.1 * prediction.stride + 1e-6
        if matching == "trilinear":
            continue
        # No teacher voxel of that view is nearer.
        for row, d in list(zip(rows.tolist(), distance.tolist()))[:50]:
            candidates = other[i][geometry.batch == (int(prediction.batch[row]) ^ 1)]
            assert d <= float((candidates - own[i][row]).norm(dim=1).min()) + 1e-6


def test_identical_views_match_voxel_to_voxel():
    scene = room()
    view = voxel_view(Points.from_scene(scene), 0.1)
    zeros = torch.zeros(len(view.origin), dtype=torch.int64)
    index, distance = nearest(view.origin, zeros, view.origin, zeros, 0.1)
    assert torch.equal(index, torch.arange(len(index))) and float(distance.max()) == 0


def test_level_means_are_means_over_the_finest_voxels():
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 7, 7, 7]]).int()
    values = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    levels = level_means(Geometry(coords), values, 3)
    assert levels[1].flatten().tolist() == [0.5, 5.0, 9.0]
    assert levels[2].flatten().tolist() == [2.0, 9.0]


def test_loss_falls_when_the_student_agrees_with_the_teacher():
    """Layer-normed targets: predicting exactly them gives 0, whatever scale the teacher has."""
    for kind in ("smooth_l1", "mse", "cosine"):
        msm = objective(loss=kind, target_norm="layer")
        target = torch.randn(50, 8) * 7 + 3
        normed = F.layer_norm(target, (8,))
        wanted = msm._normalized(0, target)
        assert float(msm._regress(normed, wanted)) == pytest.approx(0, abs=1e-6)
        assert float(msm._regress(torch.randn(50, 8), wanted)) > 0.1


def test_whitened_targets_have_unit_variance_in_every_direction():
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(5000, 6, generator=rng) @ torch.diag(torch.tensor([8.0, 5, 1, 1, 0.5, 2])) @ torch.randn(6, 6, generator=rng) + 4
    whitening = Whitening(6)
    whitening.update(mixed)
    white = whitening(mixed)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-2, rtol=0)
    assert float(torch.linalg.eigvalsh(white.T @ white / len(white)).max()) == pytest.approx(1, abs=1e-2)
    assert effective_rank(white) > 5 and effective_rank(mixed) < 3
    # It turns no axes: of features that differ in scale alone, it takes the scale.
    apart = torch.randn(5000, 3, generator=rng) * torch.tensor([3.0, 1, 2])
    whitening = Whitening(3)
    whitening.update(apart)
    assert float(F.cosine_similarity(whitening(apart), apart / apart.std(0)).mean()) > 0.99


def test_whitening_follows_the_features_over_the_steps():
    """The first steps count alike, later ones as the momentum says."""
    rng = torch.Generator().manual_seed(0)
    steps = [torch.randn(200, 4, generator=rng) * 3 + i for i in range(30)]
    whitening = Whitening(4, momentum=0.9)
    for x in steps[:5]:
        whitening.update(x)
    every = torch.cat(steps[:5]).double()
    torch.testing.assert_close(whitening.mean.double(), every.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whitening.square.double(), every.T @ every / len(every), atol=1e-3, rtol=1e-5)
    for x in steps[5:]:
        whitening.update(x)
    assert 19 < float(whitening.mean.mean()) < 22  # about ten steps behind
    whitening.update(torch.zeros(0, 4))
    for few in (steps[0][:1], torch.zeros(0, 4)):
        assert whitening(few).isfinite().all()


def test_the_whitening_is_part_of_a_checkpoint():
    msm = objective()
    msm(batch_of(msm), 0)
    again = objective()
    again.load_state_dict(msm.state_dict())
    assert all(torch.equal(a.square, b.square) and int(b.steps) == 1 for a, b in zip(msm.whitening, again.whitening))
    assert len(objective(target_norm="layer").whitening) == 0


@pytest.mark.parametrize(
    "options", [{"tokens": "coarsest"}, {"predictor": False}, {"loss_levels": "finest"}, {"mask_level": 0}, {"target_norm": "layer"}, {"target_norm": "channel"}, {"target_norm": "none"},
     {"matching": "trilinear"}, {"teacher_view": "crop"}, {"mask_ratio": 0.0}, {"loss_voxels": "crop"}]
)  # fmt: skip
def test_alternatives_run_and_learn(options):
    msm = objective(**options)
    out = msm(batch_of(msm), 0)
    out["loss"].backward()
    assert torch.isfinite(out["loss"]) and float(out["loss"].detach()) > 0
    if options.get("loss_levels") == "finest":
        assert [k for k in out if k.startswith("loss/")] == ["loss/level0"]
    if options.get("tokens") == "coarsest":
        assert list(msm.tokens) == ["2"]


@pytest.mark.parametrize("loss_voxels", ["hidden", "crop"])
def test_the_loss_asks_for_the_voxels_it_should(loss_voxels, monkeypatch):
    """Gradient reaches what the decoder gives at shown voxels only when the loss is taken there."""
    msm = objective(loss_voxels=loss_voxels, predictor=False)
    kept, predict = [], msm.predict

    def watched(batch):
        predictions, seen = predict(batch)
        levels = [SparseTensor(p.features.detach().requires_grad_(), p.geometry) for p in predictions]
        kept.extend((level.features, marks) for level, marks in zip(levels, seen))
        return levels, seen

    monkeypatch.setattr(msm, "predict", watched)
    msm(batch_of(msm), 0)["loss"].backward()
    for features, seen in kept:
        asked = features.grad.abs().sum(1) > 0
        assert asked[~seen].any() and bool(asked[seen].any()) == (loss_voxels == "crop")


@pytest.mark.parametrize("target_norm, part", [("layer", 0.8), ("whiten", 0.9)])
def test_a_few_steps_lower_the_loss_without_collapse(target_norm, part):
    """Whitened targets hold more than layer-normed ones, so their loss falls more slowly."""
    msm = objective(total=40, momentum=(0.98, 1.0), target_norm=target_norm)
    optimizer = torch.optim.AdamW([p for p in msm.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(40):
        out = msm(batch_of(msm, seed=step % 4), step)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        msm.after_step(step)
        losses.append(float(out["loss"].detach()))
    assert sum(losses[-5:]) < part * sum(losses[:5])
    assert all(float(out[f"std/level{i}"]) > 0.2 for i in range(3))


def test_feature_std_tells_collapse_from_spread():
    assert float(feature_std(torch.ones(100, 16))) == pytest.approx(0, abs=1e-5)
    assert float(feature_std(torch.randn(1000, 16))) == pytest.approx(1, abs=0.05)


def test_large_views_are_cut_around_the_same_place():
    msm = objective(STILL, max_voxels=150)
    sample = msm.sampler()(room(), torch.Generator().manual_seed(0))
    a, b = (view.origin for view in sample.views)
    assert len(a) == len(b) == 150
    assert float((a.mean(0) - b.mean(0)).norm()) < 0.2


def test_tiny_scenes_give_a_valid_step():
    msm = objective()
    scene = room(n=2)
    batch = msm.collate([msm.sampler()(scene, torch.Generator().manual_seed(0))])
    out = msm(batch, 0)
    out["loss"].backward()
    assert torch.isfinite(out["loss"])


def test_sampler_is_reproducible_and_picklable():
    sampler = pickle.loads(pickle.dumps(objective().sampler()))
    a, b = (sampler(room(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a.views[0].index, b.views[0].index) and torch.equal(a.hidden[1], b.hidden[1])
    c = sampler(room(), torch.Generator().manual_seed(6))
    assert a.views[0].index.shape != c.views[0].index.shape or not torch.equal(a.views[0].index, c.views[0].index)


def test_backbones_without_encode_and_decode_are_refused():
    with pytest.raises(ValueError, match="needs a backbone with encode"):
        MSM(MSMConfig(), torch.nn.Linear(1, 1), data_config(), 1)
