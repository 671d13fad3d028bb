"""SimMIM and BEiT: their masks, losses and codebook, what the network sees, and predictions better than a constant."""

from __future__ import annotations

import math

import pytest
import torch
from image_checks import every_parameter_learns, pixels, restored, resumes_to_the_same_weights
from test_image_objectives import build, judged_run, learnt, rng
from torch.nn import functional as F

from pcssl.config import component
from pcssl.errors import UserError
from pcssl.image.backbones.vit import patchify
from pcssl.image.views import ViewConfig
from pcssl.objectives.masked_image import Codebook, MaskedPixelLoss, MaskedWordLoss, TokenEncoder, patch_mask, try_masks

SIMMIM = {"views": [{"size": 8}], "cell": 1}
BEIT = {"views": [{"size": 8}], "codes": 6}


def test_absolute_errors_of_hidden_patches_alone():
    prediction, target = (torch.randn(2, 6, 12, generator=rng(i)) for i in (0, 1))
    hidden = torch.rand(2, 6, generator=rng(2)) < 0.5
    loss = MaskedPixelLoss(normalize=False, power=1)
    expected = (prediction - target).abs()[hidden].sum() / (hidden.sum() * 12)
    torch.testing.assert_close(loss(prediction, target, hidden), expected)
    changed = torch.where(hidden[:, :, None], prediction, prediction + 7)
    torch.testing.assert_close(loss(changed, target, hidden), expected)
    low = prediction.bfloat16().requires_grad_()
    loss(low, target, hidden).backward()
    assert low.grad.isfinite().all()


@pytest.mark.parametrize("name, options", [("simmim", SIMMIM), ("beit", BEIT)])
def test_hidden_pixels_never_reach_the_prediction(name, options):
    objective = build(name, **options)
    images = torch.rand(3, 1, 8, 8, generator=rng()).requires_grad_()
    hidden = objective.mask(images)
    features, prediction = objective.network(images, hidden)
    (features.square().sum() + prediction.square().sum()).backward()
    assert torch.equal(patchify(images.grad, 2).abs().sum(2) > 0, ~hidden)
    assert float(objective.network.token.grad.abs().sum()) > 0


def test_simmim_hides_whole_squares():
    simmim = build("simmim", **SIMMIM | {"cell": 2})
    hidden = simmim.mask(torch.zeros(5, 1, 20, 20)).view(5, 10, 10)
    assert hidden.flatten(1).sum(1).tolist() == [60] * 5
    assert torch.equal(hidden[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2), hidden)


def test_beit_hides_the_papers_number_in_boxes():
    beit = build("beit", **BEIT)
    hidden = beit.mask(torch.zeros(6, 1, 28, 28))
    assert hidden.sum(1).tolist() == [75] * 6
    # In boxes, most hidden patches have a hidden neighbour to the right; alone by chance 38 % would.
    grid = hidden.view(6, 14, 14)
    assert float((grid[:, :, :-1] & grid[:, :, 1:]).sum() / grid[:, :, :-1].sum()) > 0.6


def test_a_codebook_finds_the_words_there_are_and_keeps_them():
    words = torch.randn(5, 8, generator=rng())
    which = torch.arange(200).view(10, 20) % 5
    patches = words[which] + 0.01 * torch.randn(10, 20, 8, generator=rng(1))
    book = Codebook(5, 8)
    found = book(patches)
    assert len(set(zip(which.flatten().tolist(), found.flatten().tolist()))) == 5  # one word each
    other = Codebook(5, 8)
    other.load_state_dict(book.state_dict())
    assert torch.equal(other(patches[:1]), found[:1]) and torch.equal(book(patches[:1]), found[:1])
    with pytest.raises(ValueError, match="codes: 6 are more than the 2 different patches"):
        Codebook(6, 8)(words[:2].expand(3, -1, -1))


def test_beits_loss_is_the_cross_entropy_of_hidden_words():
    beit = build("beit", **BEIT)
    patches, logits = torch.rand(4, 16, 4, generator=rng()), torch.randn(4, 16, 6, generator=rng(1))
    hidden = torch.rand(4, 16, generator=rng(2)) < 0.4
    words = beit.codebook(patches)
    found = beit.compare(logits, patches, hidden)
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits[hidden], words[hidden]))
    assert float(beit.compare(torch.zeros_like(logits), patches, hidden)["loss"]) == pytest.approx(math.log(6))
    sure = beit.compare(50.0 * F.one_hot(words, 6), patches, hidden)
    assert float(sure["loss"]) < 1e-6 and float(sure["accuracy"]) == 1
    low = (100 * logits).bfloat16().requires_grad_()
    MaskedWordLoss()(low, words, hidden).backward()
    assert low.grad.isfinite().all() and torch.equal(low.grad.abs().sum(2) > 0, hidden)


@pytest.mark.parametrize("name, options", [("simmim", SIMMIM), ("beit", BEIT)])
def test_what_they_cannot_use(name, options):
    resnet = component("model", "resnet", in_channels=1, widths=[8], blocks=[1]).build()
    with pytest.raises(ValueError, match=f"{name} needs the model vit"):
        component("objective", name, **options).build(resnet, build(name, **options).data, 10)
    with pytest.raises(UserError, match="views: all must be of one size"):
        build(name, **options | {"views": [{"size": 8}, {"size": 4}]})


@pytest.mark.parametrize("name, options, message", [
    ("simmim", SIMMIM | {"cell": 4}, "of a view of 8 px, 16 patches of 2 px, the mask hides nothing"),
    ("mae", {"views": [{"size": 2}]}, "of a view of 2 px, 1 patches of 2 px, the mask hides nothing"),
    ("beit", BEIT | {"mask_ratio": 0.01}, "the mask hides nothing"),
    ("beit", BEIT | {"mask_ratio": 0.99}, "the mask hides everything"),
    ("beit", BEIT | {"codes": 193}, "codes: 193 are more than the 192 patches of a batch; .* data.batch_size"),
])  # fmt: skip
def test_masks_and_words_that_cannot_be(name, options, message):
    with pytest.raises((ValueError, UserError), match=message):
        build(name, **options)
    before = torch.get_rng_state()
    try_masks(lambda images: torch.rand(1, 64) < 0.5, [ViewConfig(size=8)], 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_with_too_few_different_patches():
    beit = build("beit", **BEIT)
    with pytest.raises(UserError, match=r"objective.codes: 6 are more than the 1 different patches .* data.batch_size"):
        beit.compare(torch.zeros(2, 16, 6), torch.zeros(2, 16, 4), torch.ones(2, 16).bool())


@pytest.mark.parametrize("name, options", [("mae", {}), ("simmim", SIMMIM), ("beit", BEIT)])
def test_a_class_token_is_refused(name, options):
    with pytest.raises((ValueError, UserError), match=f"{name} has no use for a class token; set model.cls_token=false"):
        build(name, {"cls_token": True}, **options)


@pytest.mark.parametrize("ratio, side, hidden", [(0.6, 6, 22), (0.75, 14, 147), (0.6, 7, 30)])
def test_the_authors_number_of_patches_is_hidden(ratio, side, hidden):
    """SimMIM's ceil(ratio n), and MAE's n - int((1 - ratio) n)."""
    assert patch_mask(torch.zeros(3, 1, side, side), 1, ratio).sum(1).tolist() == [hidden] * 3


@pytest.mark.parametrize("name, options", [("simmim", SIMMIM), ("beit", BEIT)])
def test_every_parameter_learns(name, options):
    objective = build(name, **options)
    every_parameter_learns(objective)
    assert isinstance(objective.network, TokenEncoder)


@pytest.mark.parametrize("name", ["simmim", "beit"])
def test_they_resume_to_the_same_weights(name, tmp_path):
    resumes_to_the_same_weights(name, tmp_path)


# ---------------------------------------------------------------- on digits


@pytest.mark.slow
def test_simmim_beats_random_weights_and_the_median_of_every_place(over_seeds, tmp_path):
    def measure(seed):
        path = judged_run("simmim", tmp_path, seed)
        return learnt(path) | {"error of the median's": pixel_error(restored(path))}

    found = over_seeds(measure)
    assert found["gain"].mean() >= 0.1
    assert found["error of the median's"].mean() <= 0.88


def pixel_error(simmim) -> float:
    """SimMIM's loss on held-out digits as a part of that of the median of every place."""
    known, images = (pixels(simmim, split) for split in ("train", "val"))
    torch.manual_seed(0)
    hidden = patch_mask(images, 2, 0.6)
    with torch.no_grad():
        found = simmim.loss(simmim.network(images, hidden)[1], patchify(images, 2), hidden)
    median = patchify(known.median(0, keepdim=True).values, 2).expand(len(images), -1, -1)
    return float(found / simmim.loss(median, patchify(images, 2), hidden))


@pytest.mark.slow
def test_beit_beats_random_weights_and_the_words_frequencies(over_seeds, tmp_path):
    def measure(seed):
        path = judged_run("beit", tmp_path, seed)
        return learnt(path) | {"loss of the frequencies'": word_loss(restored(path))}

    found = over_seeds(measure)
    assert found["gain"].mean() >= 0.06
    assert found["loss of the frequencies'"].mean() <= 0.9


def word_loss(beit) -> float:
    """BEiT's loss on held-out digits as a part of that of the frequency of every word at every place."""
    known, images = (patchify(pixels(beit, split), 2) for split in ("train", "val"))
    torch.manual_seed(0)
    hidden = beit.mask(pixels(beit, "val"))
    count = F.one_hot(beit.codebook(known), 32).float().sum(0) + 0.1
    constant = beit.compare((count / count.sum(1, keepdim=True)).log().expand(len(images), -1, -1), images, hidden)["loss"]
    with torch.no_grad():
        found = beit.compare(beit.network(pixels(beit, "val"), hidden)[1], images, hidden)["loss"]
    return float(found / constant)
