"""
The histogram loss alone
========================

What the loss sees in a photograph, what its bandwidth does, and how a picture takes the colors of another one. There is
no network on this page.
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
# The teacher is a photograph. The student is the same photograph with wrong colors: too dark, and blue. The regions are
# found by k-means on color and position; label maps of your own work in the same way.

teacher = load(skimage.data.chelsea())
student = (0.75 * teacher + torch.tensor([-0.03, 0.0, 0.06]).view(3, 1, 1)).clamp(0, 1)
labels = ColorPositionKMeans(num_regions=4)(teacher)
show(teacher=teacher, student=student, regions=labels)

# %%
# What the loss sees
# ------------------
#
# For each region and channel the loss compares two soft histograms (equations 6 to 10). It does not see where in the
# region a value is: it compares colors, not details.

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
# What the bandwidth does
# -----------------------
#
# Each pixel gets a gradient. It is useful where it points towards the teacher's value. Here the student is the teacher
# plus a constant, so the right direction is known for every pixel, and the curves say for how many pixels the gradient
# has it. A narrow kernel sees many small peaks of the histogram: its gradient is right for little more than half of the
# pixels, which is hardly better than chance. A wide kernel is right for up to seven of ten.

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
# A free picture can reach any histogram, also with wrong details: the loss says nothing about where a value is. So what
# is trained must keep the details. A network does. Here it is a color matrix and an offset for the whole picture:
# twelve numbers. Gradient descent finds those that undo the wrong colors, from the histograms of the regions alone.

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
