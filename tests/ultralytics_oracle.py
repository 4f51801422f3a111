"""Write a seeded random FastSAM in the official file format, and what ultralytics itself makes of real photographs.

A script of its own, because importing ultralytics changes a process: python ultralytics_oracle.py FOLDER s|x|11n ...
writes into FOLDER/s and so on. "11n" is a YOLO11 of three classes, as a file and as live objects.
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage.data
import torch
from torch import Tensor, nn
from ultralytics import YOLO, FastSAM
from ultralytics.nn.tasks import SegmentationModel, yaml_model_load

from skt_components.banks.fastsam_weights import live_state

TAPS = (0, 2, 4, 6, 15, 18, 21)
SIZE = 256


def photographs() -> list[Tensor]:
    """Five photographs, each (3, 256, 256) in [0, 1], exact in 8 bits."""
    pictures = []
    for name in ("chelsea", "coffee", "astronaut", "rocket", "immunohistochemistry"):
        picture = torch.from_numpy(getattr(skimage.data, name)().copy())
        top, left = (picture.shape[0] - SIZE) // 2, (picture.shape[1] - SIZE) // 2
        crop = picture[top : top + SIZE, left : left + SIZE, :3]
        pictures.append(crop.permute(2, 0, 1).float() / 255)
    return pictures


@torch.no_grad()
def make_lively(model: nn.Module, pictures: Tensor, score_mean: float = -1.7) -> None:
    """Give a random network the statistics of real pictures, and some anchors confidence, as training would."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches
            module.reset_running_stats()
    model.train()
    for _ in range(2):
        model(pictures)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03
            module.weight.uniform_(0.8, 1.2)
            module.bias.uniform_(-0.2, 0.2)
    model.eval()
    head, levels = model.model[-1], []
    hook = head.register_forward_pre_hook(lambda _m, arguments: levels.extend(arguments[0]))
    model(pictures)
    hook.remove()
    for x, box, score, coefficients in zip(levels, head.cv2, head.cv3, head.cv4, strict=True):
        for branch, spread, mean in ((box, 1.5, None), (score, 1.0, score_mean), (coefficients, 0.7, 0.0)):
            branch[-1].weight.mul_(spread / branch(x).std())
            if mean is not None:
                branch[-1].bias.add_(mean - branch(x).mean())


def main_yolo11(folder: Path) -> None:
    """Write yolo11n-seg.pt and reference.pt."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = SegmentationModel(yaml_model_load("yolo11n-seg.yaml"), ch=3, nc=3, verbose=False)
    batch = torch.stack(photographs()[:3])
    make_lively(model, batch, -3.0)
    model.names, model.args = {0: "cat", 1: "cup", 2: "face"}, {"imgsz": SIZE, "task": "segment"}
    path = folder / "yolo11n-seg.pt"
    content = {"epoch": -1, "best_fitness": None, "model": model.half(), "ema": None, "updates": None}
    content |= {"optimizer": None, "train_args": {"task": "segment", "imgsz": SIZE, "model": "yolo11n-seg.pt"}}
    torch.save({**content, "date": "2024-10-01T00:00:00", "version": "8.3.0"}, path)
    live = YOLO(str(path), task="segment")
    layers = taps(live.model.float().eval(), batch, (0, 2, 4, 6, 8, 10, 16, 19, 22))
    reference = {"pictures": batch, "taps": layers, "predictions": predictions(path, batch, YOLO)}
    reference["live"] = {"object": live_state(YOLO(str(path))), "network": live_state(live.model)}
    fused = YOLO(str(path))
    fused.model.float().fuse()
    reference["live"]["fused"] = live_state(fused)
    torch.save(reference, folder / "reference.pt")


def main(variant: str, folder: Path) -> None:
    """Write FastSAM-<variant>.pt and reference.pt."""
    torch.manual_seed(7)
    torch.set_num_threads(1)  # as predict() does to the process; sums of several threads round differently
    config = yaml_model_load(f"yolov8{variant}-seg.yaml")
    config["reg_max"] = {"s": 16, "x": 26}[variant]
    model = SegmentationModel(config, ch=3, nc=1, verbose=False)
    # The extra large network takes long; at twice the size, it finds nothing in the rocket.
    pictures, large = {"s": (photographs(), 2), "x": (photographs()[:2:-1], 1)}[variant]
    batch = torch.stack(pictures)
    make_lively(model, batch)
    model.names, model.args = {0: "object"}, {"imgsz": 1024, "task": "segment"}
    path = folder / f"FastSAM-{variant}.pt"
    content = {"epoch": -1, "best_fitness": None, "model": model.half(), "ema": None, "updates": None}
    content |= {"optimizer": None, "train_args": {"task": "segment", "imgsz": 1024, "model": "yolov8s-seg.pt"}}
    torch.save({**content, "date": "2023-06-21T00:00:00", "version": "8.0.120"}, path)

    reference: dict[str, object] = {"pictures": batch}
    network = FastSAM(str(path)).model.float().eval()
    doubled = nn.functional.interpolate(batch, scale_factor=2, mode="bilinear", align_corners=False)
    for name, source in [("fast", batch), ("paper", doubled[:large])]:
        reference[name] = {"taps": taps(network, source[:2]), "predictions": predictions(path, source)}
    torch.save(reference, folder / "reference.pt")


@torch.no_grad()
def taps(network: nn.Module, source: Tensor, layers: tuple[int, ...] = TAPS) -> dict[int, Tensor]:
    """Outputs of the layers, by ultralytics' own forward pass; clones, for hooks may see them change."""
    found: dict[int, Tensor] = {}
    hooks = [
        network.model[i].register_forward_hook(lambda _m, _a, out, i=i: found.__setitem__(i, out.clone()))
        for i in layers
    ]
    network(source)
    for hook in hooks:
        hook.remove()
    return found


def predictions(path: Path, source: Tensor, kind: type = FastSAM) -> list[dict[str, Tensor]]:
    """Masks, boxes and scores of predict(), with the settings of FastSAM's own script."""
    model, found = kind(str(path)), []
    for picture in source:
        array = (picture * 255).round().byte().permute(1, 2, 0).flip(-1).contiguous().numpy()  # BGR
        given = array if source.shape[-1] == SIZE else picture[None]
        result = model.predict(
            given,
            imgsz=source.shape[-1],
            conf=0.4,
            iou=0.9,
            max_det=300,
            agnostic_nms=True,
            retina_masks=True,
            device="cpu",
            verbose=False,
        )[0]
        masks = torch.zeros(0, *source.shape[-2:]) if result.masks is None else result.masks.data
        found.append({"masks": masks.bool().clone(), "scores": result.boxes.conf.clone()})
    return found


if __name__ == "__main__":
    for variant in sys.argv[2:]:
        folder = Path(sys.argv[1]) / variant
        folder.mkdir()
        if variant == "11n":
            main_yolo11(folder)
        else:
            main(variant, folder)
