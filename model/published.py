"""Published figures of the models, for comparison with ours.

Parameters and multiply-adds of V1, V2-S/M/L, Swin and ResNet are torchvision's metadata, exact or to three digits;
parameters of V2-B0..B3 and XL are timm's, and all of V2's multiply-adds are the released code's, in the digits printed.
Top-1 is the papers' (ImageNet-1k without extra data; XL: pretrained on ImageNet-21k).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """One model's figures; None where none are known to us."""

    parameters: str
    """Parameters: exact, or in millions with an M."""
    multiply_adds_b: str
    """Billions of multiply-adds of one image."""
    image_size: int
    """Side of that image, in pixels."""
    top1: float | None = None
    """ImageNet top-1 accuracy in percent."""


# fmt: off
PUBLISHED: dict[str, Published] = {
    "efficientnet_b0":     Published("5288548",    "0.386", 224, 77.1),
    "efficientnet_b1":     Published("7794184",    "0.687", 240, 79.1),
    "efficientnet_b2":     Published("9109994",    "1.088", 288, 80.1),
    "efficientnet_b3":     Published("12233232",   "1.827", 300, 81.6),
    "efficientnet_b4":     Published("19341616",   "4.394", 380, 82.9),
    "efficientnet_b5":     Published("30389784",  "10.266", 456, 83.6),
    "efficientnet_b6":     Published("43040704",  "19.068", 528, 84.0),
    "efficientnet_b7":     Published("66347960",  "37.746", 600, 84.3),
    "efficientnet_v2_b0":  Published("7.14M",       "0.72", 224, 78.7),
    "efficientnet_v2_b1":  Published("8.14M",        "1.2", 240, 79.8),
    "efficientnet_v2_b2":  Published("10.10M",       "1.7", 260, 80.5),
    "efficientnet_v2_b3":  Published("14.36M",       "3.0", 300, 82.1),
    "efficientnet_v2_s":   Published("21458488",     "8.4", 384, 83.9),
    "efficientnet_v2_m":   Published("54139356",    "24.7", 480, 85.1),
    "efficientnet_v2_l":   Published("118515272",   "56.3", 480, 85.7),
    "efficientnet_v2_xl":  Published("208.12M",       "94", 512, 87.3),
    "resnet50":            Published("25557032",   "4.089", 224),
    "resnet152":           Published("60192808",  "11.514", 224),
    "swin_t":              Published("28288354",   "4.491", 224),
    "swin_s":              Published("49606258",   "8.741", 224),
    "swin_b":              Published("87768224",  "15.431", 224),
    "swin_v2_t":           Published("28351570",    "5.94", 256),
    "swin_v2_s":           Published("49737442",  "11.546", 256),
    "swin_v2_b":           Published("87930848",  "20.325", 256),
}

# The paper's table of Fused-MBConv in EfficientNet-B4: fused rows -> figures.
PUBLISHED_FUSED_B4: dict[tuple[int, ...], Published] = {
    ():                    Published("19.3M",        "4.5", 380, 82.8),
    (1, 2, 3):             Published("20.0M",        "7.5", 380, 83.1),
    (1, 2, 3, 4, 5):       Published("43.4M",       "21.3", 380, 83.1),
    (1, 2, 3, 4, 5, 6, 7): Published("132.0M",      "34.4", 380, 81.7),
}
# fmt: on
