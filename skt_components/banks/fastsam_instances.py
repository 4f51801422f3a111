"""Turn the output of FastSAM's head into regions: select the best boxes, build their masks, make a disjoint map.

Every step has a fixed size, so it never waits for the device and it compiles. Equal scores keep their order.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from skt_components.banks.fastsam_architecture import Detections

_MASK_ELEMENTS = 1 << 26  # logits held at once: 256 MiB in float32
_PROTOTYPE_STRIDE = 4


def select_instances(
    boxes: Float[Tensor, "b a 4"], scores: Float[Tensor, "b a"], *, conf: float, iou: float, count: int
) -> tuple[Int[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Return the ``count`` best boxes that greedy non-maximum suppression keeps, best first.

    ``count`` rounds over all boxes of the batch are enough, each of which removes the boxes that overlap its best one.

    Args:
        boxes: corners x1, y1, x2, y2.
        scores: one per box; of equal scores the first comes first.
        conf: boxes take part with a score above it.
        iou: the worse of two boxes is removed with an overlap above it.
        count: K.

    Returns:
        Indices into the A boxes (0 where not valid), and which of the K are valid.
    """
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order[..., None].expand_as(boxes))
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1)
    position = torch.arange(scores.shape[1], device=scores.device)
    end = scores.shape[1]
    alive = ordered > conf
    kept = []
    for _ in range(count):
        best = torch.where(alive, position, end).amin(dim=1, keepdim=True)  # the first remaining box
        kept.append(best)
        index = best.clamp(max=end - 1)
        box = boxes.gather(1, index[..., None].expand(-1, 1, 4))
        inside = torch.minimum(box[..., 2:], boxes[..., 2:]) - torch.maximum(box[..., :2], boxes[..., :2])
        common = inside.clamp_min(0).prod(dim=-1)
        dropped = common > iou * (area.gather(1, index) + area - common)
        alive = alive & ~dropped & (position > best)
    found = torch.cat(kept, dim=1)
    valid = found < end
    return order.gather(1, found.clamp(max=end - 1)).masked_fill(~valid, 0), valid


def instance_masks(
    detections: Detections,
    index: Int[Tensor, "b k"],
    valid: Bool[Tensor, "b k"],
    *,
    scale: int,
    size: tuple[int, int],
    full_resolution: bool = True,
) -> Bool[Tensor, "b k h w"]:
    """Return the masks of the chosen instances: logits above zero inside the box.

    Args:
        detections: the output of the head for a picture that was padded and then enlarged by ``scale``, 1 or 2.
        index: indices of the instances.
        valid: instances that are not valid get an empty mask.
        size: H and W of the picture before padding.
        full_resolution: decide every pixel; False: cells of 4 / scale pixels, up to 16 times less work.
    """
    stride = _PROTOTYPE_STRIDE // scale  # of the prototypes, in pixels of the picture
    corners = detections.boxes.gather(1, index[..., None].expand(-1, -1, 4)) / scale
    weights = detections.coefficients.gather(1, index[..., None].expand(-1, -1, detections.coefficients.shape[-1]))
    with torch.autocast(weights.device.type, enabled=False):
        logits = torch.einsum("bkm,bmhw->bkhw", weights, detections.prototypes)
    flat = (logits.flatten(0, 1), corners.flatten(0, 1), valid.flatten())
    together = max(1, _MASK_ELEMENTS // max(1, logits.shape[-2] * logits.shape[-1] * stride**2))
    parts = zip(*(tensor.split(together) for tensor in flat), strict=True)
    masks = torch.cat([_threshold(part, box, ok, stride, full_resolution) for part, box, ok in parts])
    masks = masks.unflatten(0, valid.shape)
    return masks[..., : size[0], : size[1]]


def paint_regions(masks: Bool[Tensor, "b k h w"]) -> Int[Tensor, "b h w"]:
    """Return a disjoint map: 0 without a mask, else 1 + the index of the smallest mask that covers the pixel.

    So a part of an object stays visible. Of equally large masks the first wins.
    """
    count = masks.shape[1]
    order = masks.flatten(2).sum(dim=-1).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)  # of each mask, from the smallest
    kind = torch.uint8 if count < 256 else torch.int32
    covered = torch.where(masks, rank.to(kind)[..., None, None], count)
    top = covered.amin(dim=1).long()
    table = torch.cat([order + 1, order.new_zeros(len(order), 1)], dim=1)  # rank -> label; "none" -> 0
    return table.gather(1, top.flatten(1)).view_as(top)


def _threshold(logits: Tensor, boxes: Tensor, valid: Tensor, stride: int, full_resolution: bool) -> Tensor:
    """Threshold ``(N, h, w)`` logits at zero inside their boxes, per pixel or per ``stride`` pixels."""
    cell = 1 if full_resolution else stride
    if full_resolution and stride > 1:
        logits = F.interpolate(logits[:, None], scale_factor=stride, mode="bilinear", align_corners=False)[:, 0]
    height, width = logits.shape[-2:]
    y = torch.arange(height, device=logits.device)[:, None] * cell
    x = torch.arange(width, device=logits.device)[None, :] * cell
    x1, y1, x2, y2 = boxes[..., None, None].unbind(dim=1)
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    masks = (logits > 0) & inside & valid[..., None, None]
    return masks if cell == 1 else masks.repeat_interleave(cell, dim=-2).repeat_interleave(cell, dim=-1)
