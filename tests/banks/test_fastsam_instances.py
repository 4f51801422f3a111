from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skt_components.banks.fastsam_architecture import Detections
from skt_components.banks.fastsam_instances import instance_masks, paint_regions, select_instances


def random_boxes(batch: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes in clusters, so that many overlap much."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, 5, 2, generator=generator).repeat_interleave(-(-count // 5), 1)[:, :count] * 50
    corner = corner + torch.rand(batch, count, 2, generator=generator) * 2
    size = 10 + 2 * torch.rand(batch, count, 2, generator=generator)
    return torch.cat([corner, corner + size], dim=-1), torch.rand(batch, count, generator=generator)


# select_instances


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0.3, 0.7, 0.9]), st.integers(1, 80))
def test_selection_equals_torchvisions_nms(boxes_per_picture: int, seed: int, iou: float, count: int) -> None:
    nms = pytest.importorskip("torchvision.ops").nms
    boxes, scores = random_boxes(3, boxes_per_picture, seed)
    index, valid = select_instances(boxes, scores, conf=0.2, iou=iou, count=count)
    for b in range(3):
        candidates = (scores[b] > 0.2).nonzero()[:, 0]
        kept = candidates[nms(boxes[b][candidates], scores[b][candidates], iou)][:count]
        assert valid[b].sum() == len(kept)
        assert torch.equal(index[b][valid[b]], kept)
        assert not index[b][~valid[b]].any()


def test_equal_scores_keep_their_order_and_equal_boxes_leave_one() -> None:
    apart = torch.tensor([[0.0, 0, 5, 5], [10, 0, 15, 5], [20, 0, 25, 5]])
    index, valid = select_instances(apart[None], torch.full((1, 3), 0.5), conf=0.4, iou=0.5, count=2)
    assert index.tolist() == [[0, 1]]
    same = torch.tensor([[0.0, 0, 5, 5]]).expand(1, 40, 4)
    index, valid = select_instances(same, torch.full((1, 40), 0.5), conf=0.4, iou=0.5, count=3)
    assert (index.tolist(), valid.tolist()) == ([[0, 0, 0]], [[True, False, False]])


def test_degenerate_boxes_and_scores_that_are_not_numbers() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [9, 9, 3, 3], [float("nan")] * 4, [0, 0, 4, 4]])[None]
    scores = torch.tensor([[0.9, 0.8, 0.7, float("nan")]])
    index, valid = select_instances(boxes, scores, conf=0.4, iou=0.5, count=4)
    assert valid.sum() == 3
    assert index[0][valid[0]].tolist() == [0, 1, 2]


def test_nothing_above_the_threshold() -> None:
    boxes, scores = random_boxes(2, 10, 0)
    index, valid = select_instances(boxes, scores * 0.4, conf=0.4, iou=0.9, count=4)
    assert not valid.any()
    assert not index.any()


def test_a_picture_does_not_depend_on_the_others() -> None:
    boxes, scores = random_boxes(4, 50, 3)
    together = select_instances(boxes, scores, conf=0.2, iou=0.7, count=8)
    alone = [select_instances(boxes[i : i + 1], scores[i : i + 1], conf=0.2, iou=0.7, count=8) for i in range(4)]
    assert torch.equal(together[0], torch.cat([a[0] for a in alone]))


# instance_masks


def detections(logits: Tensor, boxes: list[list[float]]) -> Detections:
    """Return one detection per box, whose mask logits are one prototype each."""
    count = len(boxes)
    eye = torch.eye(count)[None].expand(len(logits), -1, -1)
    return Detections(torch.tensor(boxes).expand(len(logits), count, 4), torch.ones(len(logits), count), eye, logits)


def masks_of(found: Detections, valid: Tensor | None = None, **options: object) -> Tensor:
    batch, count = found.scores.shape
    index = torch.arange(count).expand(batch, count)
    valid = torch.ones(batch, count, dtype=torch.bool) if valid is None else valid
    return instance_masks(found, index, valid, **{"scale": 1, "size": (32, 32), **options})  # type: ignore[arg-type]


def test_logits_are_upsampled_and_then_cut() -> None:
    logits = torch.full((1, 1, 8, 8), -1.0)
    logits[..., :4] = 1.0  # the border at pixel 16; bilinear passes through zero exactly there
    masks = masks_of(detections(logits, [[0.0, 0, 32, 32]]))
    assert masks.shape == (1, 1, 32, 32)
    assert masks[0, 0, 0].tolist() == [True] * 16 + [False] * 16
    logits[..., :4] = 3.0  # a stronger side reaches further, below the size of a cell
    assert masks_of(detections(logits, [[0.0, 0, 32, 32]]))[0, 0, 0].sum() == 17


def test_masks_end_at_their_box_and_at_the_picture() -> None:
    found = detections(torch.ones(1, 2, 8, 8), [[3.0, 5, 9, 30], [-4.0, -4, 99, 99]])
    masks = masks_of(found, size=(27, 31))
    assert masks.shape == (1, 2, 27, 31)
    ys, xs = masks[0, 0].nonzero().unbind(1)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (5, 26, 3, 8)
    assert masks[0, 1].all()


def test_twice_the_size_is_brought_back() -> None:
    masks = masks_of(detections(torch.ones(1, 1, 16, 16), [[8.0, 16, 40, 48]]), scale=2)
    ys, xs = masks[0, 0].nonzero().unbind(1)
    assert masks.shape[-2:] == (32, 32)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (8, 23, 4, 19)


def test_what_is_not_valid_is_empty() -> None:
    found = detections(torch.ones(1, 2, 8, 8), [[0.0, 0, 32, 32]] * 2)
    masks = masks_of(found, torch.tensor([[True, False]]))
    assert masks.flatten(2).any(-1).tolist() == [[True, False]]


def test_cells_agree_with_pixels_but_near_borders() -> None:
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(2, 3, 4, 4, generator=generator), 32, mode="bicubic")
    found = detections(smooth, [[0.0, 0, 128, 128], [16, 16, 96, 96], [0, 0, 64, 128]])
    fine = masks_of(found, size=(128, 120))
    coarse = masks_of(found, size=(128, 120), full_resolution=False)
    assert coarse.shape == fine.shape
    blocks = coarse.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()
    assert 0 < (fine != coarse).float().mean() < 0.05


def test_parts_of_a_large_batch_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 2, 8, 8)
    found = detections(logits, [[0.0, 0, 32, 32], [3, 3, 20, 30]])
    wanted = masks_of(found)
    for together in (1, 3, 7):  # masks, also across pictures
        monkeypatch.setattr("skt_components.banks.fastsam_instances._MASK_ELEMENTS", together * 32 * 32)
        assert torch.equal(masks_of(found), wanted)
    empty = masks_of(Detections(*(x[:0] for x in found)))
    assert empty.shape == (0, 2, 32, 32)


def test_masks_are_found_in_float32_under_autocast() -> None:
    found = detections(torch.randn(1, 4, 8, 8), [[0.0, 0, 32, 32]] * 4)
    found = found._replace(coefficients=torch.randn(1, 4, 4))
    wanted = masks_of(found)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masks_of(found), wanted)


# paint_regions


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_every_pixel_belongs_to_the_smallest_mask_on_it(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(2, count, 1, 1, generator=generator)
    masks = torch.rand(2, count, 6, 7, generator=generator) < share
    labels = paint_regions(masks)
    areas = masks.flatten(2).sum(-1)
    for b in range(2):
        for y in range(6):
            for x in range(7):
                on = [(int(areas[b, k]), k) for k in range(count) if masks[b, k, y, x]]
                assert labels[b, y, x] == (1 + min(on)[1] if on else 0)


def test_no_masks_paint_the_background_and_many_masks_do_not_overflow() -> None:
    assert not paint_regions(torch.zeros(2, 3, 4, 4, dtype=torch.bool)).any()
    one_pixel_each = torch.eye(400, dtype=torch.bool).view(1, 400, 20, 20)
    assert torch.equal(paint_regions(one_pixel_each).flatten(), torch.arange(1, 401))


def test_compiles() -> None:
    boxes, scores = random_boxes(2, 30, 5)
    found = Detections(boxes, scores, torch.randn(2, 30, 4), torch.randn(2, 4, 16, 16))

    def regions(found: Detections) -> Tensor:
        chosen = select_instances(found.boxes, found.scores, conf=0.2, iou=0.7, count=4)
        return paint_regions(instance_masks(found, *chosen, scale=1, size=(62, 61)))

    compiled = torch.compile(regions, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(found), regions(found))
    assert regions(found).max() > 1
