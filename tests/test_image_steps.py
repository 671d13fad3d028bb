"""What a step of every image method computes, written out from its parts: the loss, and the gradient of every parameter."""

from __future__ import annotations

import copy

import pytest
import torch
from test_clustering import MSN, SWAV
from test_glare import objective as glare
from test_groco import SMALL as GROCO
from test_ibot import IBOT
from test_ijepa import IJEPA
from test_image_objectives import TINY, batch, build
from test_masked_image import BEIT, SIMMIM
from test_myow import OPTIONS as MYOW
from test_projection_head import SMALL as SIMCLR
from test_selfpatch import SMALL as SELFPATCH
from test_transitive import OPTIONS as TRANSITIVE
from torch.nn import functional as F

from pcssl.image.backbones.vit import patchify, sine_positions
from pcssl.image.tokens import pooled
from pcssl.objectives.clustering import MSNLoss, SwAVLoss
from pcssl.objectives.contrast import InfoNCE, NTXent
from pcssl.objectives.distillation import DistillationLoss, PatchDistillationLoss
from pcssl.objectives.glare import GLARELoss, attention_guided_regions, cross_view_region, region_means
from pcssl.objectives.groco import GroupOrderingLoss
from pcssl.objectives.ijepa import LatentLoss, draw_blocks
from pcssl.objectives.masked_image import MaskedPixelLoss, patch_mask
from pcssl.objectives.selfpatch import SelfPatchLoss
from pcssl.objectives.transitive import RankingLoss, TransitiveGraph, mutual_knn_edges, track_edges


def embedded(backbone, views):
    return torch.cat([pooled(backbone(view)) for view in views])


def dino(m, x):
    with torch.no_grad():
        targets = [m.teacher.network(view)[1] for view in x.views[:2]]
    return DistillationLoss(24)([m.student(view)[1] for view in x.views], targets, 0.04)


def ibot(m, x):
    images = torch.cat(x.views[:2])
    hidden = m.mask(images)
    teacher, student = m.teacher.network, m.student
    with torch.no_grad():
        clean = teacher.backbone(images)[0]
        targets, patch_targets = teacher.head(clean.pooled).chunk(2), teacher.head(clean.dense[hidden])
    seen = student.backbone(images, hidden=hidden, token=student.token)[0]
    views = [*seen.pooled.chunk(2), *(pooled(student.backbone(view)) for view in x.views[2:])]
    of_images = DistillationLoss(24)([student.head(view) for view in views], targets, 0.04)
    return of_images + PatchDistillationLoss(24)(student.head(seen.dense[hidden]), patch_targets, 0.04)


def selfpatch(m, x):
    with torch.no_grad():
        targets, patch_targets = m.teacher.network(x.views, local=True)[1:]
    scores, patches = m.student(x.views, local=False)[1:]
    return SelfPatchLoss(24, 12)(scores, targets[:2], patches, patch_targets, 0.04)["loss"]


def regions_of_the_other_view(m, x):
    images = torch.cat(x.views)
    blurred, hidden = m.blur(images, 2)
    assert not torch.equal(blurred, images) and hidden.any() and not hidden.all()
    student, teacher = m.student, m.teacher.network
    seen = student(blurred)
    with torch.no_grad():
        clean = teacher(images)
        regions = attention_guided_regions(teacher.backbone.attention_maps(images).mean(2), (4, 4), 3, 2)
        first, second = clean.dense.chunk(2)
        matched = cross_view_region(region_means(clean.dense, regions), torch.cat([second, first]))[0]
        targets = [teacher.heads["global"](clean.pooled).chunk(2), teacher.heads["local"](clean.dense[hidden])]
        targets.append(teacher.heads["regional"](matched.flatten(0, 1)))
    scores = [student.heads["global"](seen.pooled).chunk(2), student.heads["local"](seen.dense[hidden])]
    scores.append(student.heads["regional"](region_means(seen.dense, regions).flatten(0, 1)))
    return GLARELoss(24)(*zip(scores, targets), 0.04)["loss"]


def mocov3(m, x):
    """A view at a time: BatchNorm's statistics over both would tell a query of its key."""
    queries = [m.predictor(m.student(view)[1]) for view in x.views]
    with torch.no_grad():
        keys = [m.teacher.network(view)[1] for view in x.views]
    return InfoNCE(0.2)(queries[0], keys[1]) + InfoNCE(0.2)(queries[1], keys[0])


def simclr(m, x):
    return NTXent(0.1)(*m.network.head(embedded(m.network.backbone, x.views)).chunk(2))


def swav(m, x):
    return SwAVLoss()([m.network(view)[1] for view in x.views], assigned=2)


def msn(m, x):
    with torch.no_grad():
        target = m.teacher.network(x.views[0])[1]
    anchors = [pooled(m.student.backbone(x.views[1], m.keep(x.views[1]))), embedded(m.student.backbone, x.views[2:])]
    return MSNLoss()(m.prototypes(m.student.head(torch.cat(anchors))), m.prototypes(target))[0]


def groco(m, x):
    return GroupOrderingLoss(4)(m.network.head(embedded(m.network.backbone, x.views)).chunk(4), large=2)


def mae(m, x):
    (images,) = x.views
    hidden = patch_mask(images, 2, 0.75)
    visible = m.encoder(images, torch.nonzero(~hidden)[:, 1].view(len(images), -1))[0].dense
    tokens = m.decoder.token.expand(len(images), 16, -1).masked_scatter(~hidden[:, :, None], m.decoder.enter(visible))
    prediction = m.decoder.leave(m.decoder.blocks(tokens + sine_positions((4, 4), 16, 4)))
    return MaskedPixelLoss()(prediction, patchify(images, 2), hidden)


def simmim(m, x):
    (images,) = x.views
    hidden = patch_mask(images, 2, 0.6)
    features = m.network.backbone(images, hidden=hidden, token=m.network.token)[0].dense
    return (m.network.head(features) - patchify(images, 2))[hidden].abs().mean()


def beit(m, x):
    (images,) = x.views
    hidden = m.mask(images)
    features = m.network.backbone(images, hidden=hidden, token=m.network.token)[0].dense
    return F.cross_entropy(m.network.head(features)[hidden], m.codebook(patchify(images, 2))[hidden])


def ijepa(m, x):
    """Every block with the context alone."""
    (images,) = x.views
    seen, targets = draw_blocks((4, 4), len(images), targets=2)
    positions, context = sine_positions((4, 4), 16, 4), m.student(images, seen)[0].dense
    known, predicted = m.predictor.enter(context) + positions[seen], []
    for places in targets.unbind(1):
        out = m.predictor.blocks(torch.cat([known, m.predictor.token + positions[places]], 1))
        predicted.append(m.predictor.leave(out[:, known.shape[1] :]))
    with torch.no_grad():
        features = m.teacher.network(images)[0].dense
    return LatentLoss()(torch.stack(predicted, 1), features, targets)


def myow(m, x):
    online, target, net = m.network.online, m.network.target.network, m.network
    a, b, mild = x.views
    with torch.no_grad():
        wanted = [target.projector(target.encoder(view)) for view in (b, a)]
        candidates = target.encoder(mild)
    augmented = sum(net.loss(net.predictor(online.projector(online.encoder(v))), t) for v, t in zip((a, b), wanted)) / 2
    y = online.encoder(mild)
    similarity = F.normalize(y.detach(), dim=1) @ F.normalize(candidates, dim=1).T
    rows = similarity.masked_fill(torch.eye(len(y), dtype=torch.bool), -9).argmax(1)
    with torch.no_grad():
        mined = target.mined_projector(target.projector(candidates[rows]))
    return (augmented + net.loss(net.mined_predictor(online.mined_projector(online.projector(y))), mined)) / 2


def transitive(m, x):
    plain = x.views[0].flatten(1)
    graph = TransitiveGraph(track_edges(8, 3), mutual_knn_edges(plain, 2), 24)
    pairs = graph.sample(32)
    a, b = m.network.head(embedded(m.network.backbone, x.views))[pairs].unbind(1)
    return RankingLoss()(a, b, pairs % 8, 0.5, graph.related(pairs))


NO_NORM = {"head": "dino"}  # views of different sizes then do not meet in a BatchNorm
STEPS = [
    ("dino", dino, {**NO_NORM, "freeze_last": 0.0}), ("ibot", ibot, IBOT | NO_NORM), ("selfpatch", selfpatch, SELFPATCH | {"freeze_last": 0.0}),
    ("glare", regions_of_the_other_view, {}), ("mocov3", mocov3, {}), ("simclr", simclr, SIMCLR), ("swav", swav, SWAV | NO_NORM),
    ("msn", msn, MSN), ("groco", groco, GROCO), ("mae", mae, TINY["mae"]), ("simmim", simmim, SIMMIM), ("beit", beit, BEIT),
    ("ijepa", ijepa, IJEPA), ("myow", myow, MYOW), ("transitive", transitive, TRANSITIVE),
]  # fmt: skip


@pytest.mark.parametrize("name, by_hand, options", STEPS, ids=[name for name, *_ in STEPS])
def test_a_step_is_that_of_its_parts(name, by_hand, options):
    method = glare(**options) if name == "glare" else build(name, **options)
    torch.manual_seed(1)
    with torch.no_grad():  # a teacher is now another network than the student
        for p in method.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    x, other = batch(method), copy.deepcopy(method)
    step = 99 if name in ("myow", "transitive") else 0
    torch.manual_seed(5)
    found = method(x, step)["loss"]
    torch.manual_seed(5)
    expected = by_hand(other, x)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    for (part, p), q in zip(method.named_parameters(), other.parameters()):
        assert (p.grad is None) == (q.grad is None), part
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-3, msg=part)


def test_every_image_method_has_its_step_here():
    from pcssl.objectives.image import ImageObjective
    from pcssl.registry import lookup, names

    assert {name for name, *_ in STEPS} == {n for n in names("objective") if issubclass(lookup("objective", n).factory, ImageObjective)}
