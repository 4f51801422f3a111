"""
The histogram loss alone
========================

This page shows the histograms that the loss compares, the effect of the bandwidth, and how the loss corrects the colors
of a picture. It needs no network.
"""

import matplotlib.pyplot as plt
import skimage
import torch
from torch.nn import functional as F

from skt_components import ColorPositionKMeans, HistogramLoss, SemanticHistogramLoss, soft_histogram


def load(picture):
    """Turn a picture of scikit-image into a tensor (1, 3, 192, 256) in [0, 1]."""
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    return F.interpolate(tensor, (192, 256), mode="area")


def show(**pictures):
    """Draw pictures (1, 3, H, W) or label maps (1, H, W) side by side."""
    _, axes = plt.subplots(1, len(pictures), figsize=(3.2 * len(pictures), 2.8), layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        shown = picture[0].detach().clamp(0, 1).permute(1, 2, 0) if picture.ndim == 4 else picture[0]
        axis.imshow(shown, cmap="tab10", interpolation="nearest")
        axis.set_title(title.replace("_", " "))
        axis.axis("off")


# %%
# A teacher, a student and regions
# --------------------------------
#
# The teacher is a photograph. The student is the same photograph with wrong colors: too dark and too blue. K-means on
# color and position finds the regions. You can use your own label maps in the same way.

teacher = load(skimage.data.chelsea())
student = (0.75 * teacher + torch.tensor([-0.03, 0.0, 0.06]).view(3, 1, 1)).clamp(0, 1)
labels = ColorPositionKMeans(num_regions=4)(teacher)
show(teacher=teacher, student=student, regions=labels)

# %%
# The histograms
# --------------
#
# For each region and channel the loss compares two soft histograms (equations 6 to 10). A histogram does not depend on
# the position of a value in the region. So the loss compares colors, not details.

histograms = {
    name: soft_histogram(picture, labels=labels, num_regions=4, bandwidth=1 / 64)[0]
    for name, picture in {"teacher": teacher, "student": student}.items()
}
_, axes = plt.subplots(1, 4, figsize=(12, 2.6), layout="constrained", sharey=True)
for region, axis in enumerate(axes):
    for name, style in {"teacher": "-", "student": "--"}.items():
        for channel, color in enumerate(("tab:red", "tab:green", "tab:blue")):
            axis.plot(torch.linspace(0, 1, 256), histograms[name][region, channel], style, color=color)
    axis.set_title(f"region {region}")
    axis.set_xlabel("value")
axes[0].set_ylabel("teacher: solid\nstudent: dashed")

# %%
# The bandwidth
# -------------
#
# Each pixel gets a gradient. The gradient is useful if it moves the pixel towards the value of the teacher. Here the
# student is the teacher plus a constant, so the right direction is known for every pixel. The curves show the share of
# pixels whose gradient has the right direction. With a narrow kernel, the histogram has many small peaks, and the
# gradient is right for little more than half of the pixels. This is hardly better than chance. With a wide kernel, it
# is right for up to seven of ten pixels.

shifts = torch.linspace(0.01, 0.25, 13)
_, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for bandwidth, name in ((1 / 400, "1/400"), (1 / 64, "1/64"), (1 / 16, "1/16")):
    loss, right = HistogramLoss(bandwidth=bandwidth, value_range=(0, 1.25)), []
    for shift in shifts:
        moved = (teacher + shift).requires_grad_()
        loss(moved, teacher).backward()
        right.append((moved.grad > 0).float().mean().item())  # descending makes the pixel darker
    axis.plot(shifts, right, "o-", label=name)
axis.set(xlabel="constant added to the teacher", ylabel="share of pixels\nwith the right direction", ylim=(0.4, 1.02))
axis.legend(title="bandwidth")

# %%
# Colors of another picture
# -------------------------
#
# If every pixel is free, a picture with wrong details can reach the right histogram. So the trained parameters must
# keep the details, as a network does. Here the parameters are a color matrix and an offset for the whole picture:
# twelve numbers. Gradient descent uses only the histograms of the regions. It finds twelve numbers that correct the
# colors.

matrix, offset = torch.eye(3).requires_grad_(), torch.zeros(3, 1, 1, requires_grad=True)
optimizer = torch.optim.Adam([matrix, offset], lr=0.02)


def corrected():
    """Return the student with other colors."""
    return torch.einsum("ij,bjhw->bihw", matrix, student) + offset


for bandwidth in (1 / 16, 1 / 64):
    color_loss = SemanticHistogramLoss(bandwidth=bandwidth)
    target = color_loss.precompute(teacher, labels=labels, num_regions=4)
    for _ in range(100):
        optimizer.zero_grad()
        color_loss(corrected(), target).backward()
        optimizer.step()

result = corrected().detach()
print(
    f"mean error per pixel before: {(student - teacher).abs().mean():.3f}, after: {(result - teacher).abs().mean():.3f}"
)
show(student=student, corrected=result, teacher=teacher)
