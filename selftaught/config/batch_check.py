"""Checks before training that a batch and a training set have enough images for a stage."""

from functools import cache

import timm
import torch

from selftaught.config.registry import method_name
from selftaught.config.stage import Stage, method_of
from selftaught.distributed import world_size
from selftaught.errors import UserError
from selftaught.hard.base import part_name
from selftaught.models import backbone as backbone_module
from selftaught.text import count_text


def check_counts(stage: Stage, images: int) -> None:
    """Raise UserError where a batch, or the training set of `images` images, is too small."""
    method, name, world = stage.method, method_name(stage), world_size()
    part = stage.batch // stage.accumulate
    needs = {"for its batch norms": world * method.min_batch}
    if method_of(method).couples_samples:
        needs["as it compares them"] = 2
    needs |= {f"for {part_name(h)}": world * h.min_batch for h in stage.hard if h.weight}
    if part == world and not takes_one_image(stage):
        reason = (
            f"as batch norms of {stage.backbone} get one value from an image of {stage.size} pixels"
        )
        needs[reason] = 2 * world
    reason, least = max(needs.items(), key=lambda need: need[1])
    refuse_few(name, images, max(least, 2))
    if part < least:
        most = stage.batch // least
        fewer = ""
        if stage.accumulate > 1 and most:
            fewer = f", or --accumulate {most}{' or less' if most > 1 else ''}"
        remedy = f"--batch {least * stage.accumulate} or more{fewer}"
        if least * stage.accumulate > images:
            remedy = f"--batch {least} --accumulate 1"
        parts = stage.accumulate
        where = "a batch" if parts == 1 else f"each of {parts} parts of a batch"
        raise UserError(f"{name} needs at least {least} images in {where}, {reason}: {remedy}")
    if images < stage.batch:
        unit = world * stage.accumulate
        remedy = "lower --batch and --accumulate"
        if images >= unit:
            remedy = f"--batch {images // unit * unit} or less"
        raise UserError(
            f"{count_text(images, 'training image')} are fewer than a batch of {stage.batch}:"
            f" {remedy}"
        )
    if (epoch := images // part * part) < method.min_images:
        raise UserError(
            f"{name} makes {method.min_images:,} clusters of the images of an epoch, which has"
            f" {epoch:,}: --method.clusters {epoch} or less"
        )


def refuse_few(name: str, images: int, least: int = 2) -> None:
    """Raise UserError where the method `name` would train on fewer than `least` images."""
    if images < least:
        raise UserError(
            f"{name} needs at least {least} images to train on, and there"
            f" {'is' if images == 1 else 'are'} {images}: add images, or lower --holdout"
        )


def takes_one_image(stage: Stage) -> bool:
    """Whether the backbone can train on one image at a time.

    A batch norm cannot where an image has one value a channel.
    """
    name = stage.backbone
    # The stages of a study have few networks. A name of Python may mean another one each time.
    check = _takes_one_image_cached if timm.is_model(name) else _takes_one_image
    keeps = stage.norm_statistics == "weights"
    return check(name, stage.stem, stage.size, stage.trainable, keeps)


def _takes_one_image(
    name: str, stem: str, size: int, trainable: str, keep_statistics: bool
) -> bool:
    with torch.device("meta"):
        backbone = backbone_module.create(name, stem=stem, image_size=size)
        backbone_module.set_trainable(backbone, trainable, keep_statistics)
        try:
            backbone.train()(torch.zeros(1, 3, size, size))
        except ValueError:  # torch's "Expected more than 1 value per channel"
            return False
    return True


_takes_one_image_cached = cache(_takes_one_image)
