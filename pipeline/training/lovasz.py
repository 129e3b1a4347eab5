"""The Lovász-Softmax loss: a surrogate of the Jaccard index (IoU) for segmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return the Lovász-Softmax loss of an image, averaged over its classes, then over the images.

    Berman, Triki and Blaschko, The Lovász-Softmax loss, 2018 (arXiv 1705.08790), equations 8, 9 and 11 with the classes
    that are in the image. Each image is for itself: so the loss is a mean over images, the same for any number of
    workers and any micro-batch, which one over the batch's pixels would not be. An image without a known pixel is 0.

    Args:
        probabilities: of the classes, float32 [B, K, H, W].
        targets: soft, float [B, K, H, W]; their sum over the classes is the pixel's weight. The loss is one of sets, so
            a pixel that is blended of two images is of the class with the larger share, which is that of the image
            itself; it is ignored where no more than half of it is known.
    """
    shares, labels = targets.max(1)
    known = (targets.sum(1) > 0.5) & (shares > 0)
    truth = torch.zeros_like(targets).scatter_(1, labels[:, None], 1.0) * known[:, None]
    # An error of 0 comes last and adds nothing, wherever a pixel that is ignored stands among the others.
    errors = ((truth - probabilities).abs() * known[:, None]).flatten(2)
    errors, order = errors.sort(dim=2, descending=True, stable=True)
    truth = truth.flatten(2)
    weights = _jaccard_gradient(truth.gather(2, order))
    there = (truth.sum(2) > 0).float()
    by_class = (errors * weights).sum(2) * there
    return (by_class.sum(1) / there.sum(1).clamp_min(1)).mean()


def _jaccard_gradient(truth: Tensor) -> Tensor:
    """Return by how much the Jaccard loss of a class grows with each pixel, of those with larger errors before it.

    `truth` is 0 or 1, [B, K, pixels], in the order of the errors.
    """
    total = truth.sum(2, keepdim=True)
    common, union = total - truth.cumsum(2), total + (1 - truth).cumsum(2)
    loss = 1 - common / union.clamp_min(1)
    return torch.cat((loss[..., :1], loss[..., 1:] - loss[..., :-1]), 2)
