"""The recipes by name. A recipe is a function that returns a complete `TrainConfig`; a variant calls its base."""

from __future__ import annotations

from collections.abc import Callable

from jobs.recipes.earth import unet_demo
from jobs.recipes.fonts import fonts, fonts_progressive, fonts_small
from jobs.recipes.full_photographs import cifar10, cifar10_gpu, tiny_imagenet, tiny_imagenet_gpu
from jobs.recipes.generic import classify, finetune, multilabel, regress, segment
from jobs.recipes.imagenet import (
    efficientnetv2_l_google,
    efficientnetv2_l_paper,
    efficientnetv2_m_google,
    efficientnetv2_m_paper,
    efficientnetv2_s_google,
    efficientnetv2_s_paper,
)
from jobs.recipes.masks import camvid, magnetic_tiles
from jobs.recipes.photographs import (
    cifar10_progressive,
    cifar10_small,
    tiny_imagenet_progressive,
    tiny_imagenet_small,
)
from jobs.recipes.solar_cells import demo, demo_adaptive, demo_scratch, elpv_frozen, elpv_scratch, elpv_transfer
from pipeline.config import TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        classify,
        finetune,
        segment,
        multilabel,
        regress,
        demo,
        demo_scratch,
        demo_adaptive,
        elpv_transfer,
        elpv_frozen,
        elpv_scratch,
        unet_demo,
        fonts,
        fonts_small,
        fonts_progressive,
        cifar10_small,
        tiny_imagenet_small,
        cifar10_progressive,
        tiny_imagenet_progressive,
        cifar10,
        cifar10_gpu,
        tiny_imagenet,
        tiny_imagenet_gpu,
        camvid,
        magnetic_tiles,
        efficientnetv2_s_paper,
        efficientnetv2_m_paper,
        efficientnetv2_l_paper,
        efficientnetv2_s_google,
        efficientnetv2_m_google,
        efficientnetv2_l_google,
    )
}
