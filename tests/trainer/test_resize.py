"""Sizes: tables with wide and tall images, so that a swapped width and height cannot pass."""

from __future__ import annotations

import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from trainer.data.resize import Size, at_area_of, nearest_aspect, nearest_multiple, nearest_possible, scaled
from trainer.families.records import FLUX_KONTEXT, QWEN_IMAGE_EDIT
from trainer.models.family import Family
from trainer.models.flux_kontext import FluxKontext
from trainer.models.qwen_image_edit import QwenImageEdit

KONTEXT, QWEN = FluxKontext(FLUX_KONTEXT.variants[0], {}), QwenImageEdit(QWEN_IMAGE_EDIT.variants[0], {})
TINY = [FluxKontext(FLUX_KONTEXT.variants[1], {}), QwenImageEdit(QWEN_IMAGE_EDIT.variants[1], {})]
FAMILIES = [KONTEXT, QWEN, *TINY]
IMAGES = [Size(*size) for size in [(1, 1), (7, 3000), (3000, 7), (64, 64), (333, 777), (1024, 1024), (4000, 3000)]]


@pytest.mark.parametrize(
    ("image", "kontext", "qwen"),
    [
        ((1024, 1024), (1024, 1024), (1024, 1024)),
        ((300, 300), (1024, 1024), (1024, 1024)),
        ((1500, 1000), (1248, 832), (1248, 832)),
        ((1000, 1500), (832, 1248), (832, 1248)),
        ((1920, 1080), (1392, 752), (1376, 768)),
        ((1080, 1920), (752, 1392), (768, 1376)),
        ((4000, 1000), (1568, 672), (2048, 512)),
        ((1000, 4000), (672, 1568), (512, 2048)),
    ],
)
def test_a_control_gets_the_size_that_inference_gives_it(image, kontext, qwen):
    for family, expected in ((KONTEXT, kontext), (QWEN, qwen)):
        assert family.control_size(Size(*image), Size(64, 64), "inference") == expected
        assert family.target_size(Size(*image), 1024) == expected


@pytest.mark.parametrize(
    ("image", "resolution", "kontext", "qwen"),
    [
        ((1500, 1000), 512, (624, 416), (640, 416)),
        ((1000, 1500), 512, (416, 624), (416, 640)),
        ((1000, 1000), 768, (768, 768), (768, 768)),
        ((900, 600), 64, (80, 48), (64, 64)),
        ((600, 900), 64, (48, 80), (64, 64)),
        ((200, 100), 64, (96, 48), (96, 32)),
        ((100, 200), 64, (48, 96), (32, 96)),
    ],
)
def test_a_target_gets_its_bucket_at_the_resolution(image, resolution, kontext, qwen):
    assert KONTEXT.target_size(Size(*image), resolution) == kontext
    assert QWEN.target_size(Size(*image), resolution) == qwen


@pytest.mark.parametrize("family", [KONTEXT, QWEN])
@pytest.mark.parametrize("resolution", [512, 768, 1024])
@pytest.mark.parametrize("image", [Size(1500, 1000), Size(1000, 1500), Size(1920, 1080), Size(640, 640)])
def test_a_control_at_the_targets_area_is_as_large_as_a_target_of_its_aspect(family, resolution, image):
    target = family.target_size(image, resolution)
    assert family.control_size(image, target, "target") == target
    assert family.control_size(image, target, "inference") == family.target_size(image, 1024)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image", IMAGES)
def test_every_size_can_be_patched(family: Family, image: Size):
    target = family.target_size(image, family.variant.resolution)
    sizes = [target, family.sample_size(image)]
    sizes += [family.control_size(image, target, area) for area in ("inference", "target")]
    for size in sizes:
        assert min(size) >= family.patch and size.width % family.patch == size.height % family.patch == 0


@pytest.mark.parametrize(
    ("family", "wanted", "made"),
    [
        (KONTEXT, (1024, 1024), (1024, 1024)),
        (KONTEXT, (1000, 700), (1008, 704)),
        (QWEN, (700, 1000), (704, 1008)),
        (KONTEXT, (1, 1), (16, 16)),
        (QWEN, (8192, 8192), (2048, 2048)),
        (QWEN, (8192, 2048), (4096, 1024)),
        (TINY[0], (1024, 1024), (64, 64)),
        (TINY[1], (1024, 1024), (64, 64)),
        (TINY[0], (1920, 1080), (80, 48)),
        (TINY[1], (1080, 1920), (48, 80)),
        (TINY[0], (64, 32), (64, 32)),
    ],
)
def test_a_sample_gets_the_nearest_size_that_the_model_can_make(family, wanted, made):
    assert family.sample_size(Size(*wanted)) == made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_that_can_be_made_stays(family: Family):
    for wanted in IMAGES:
        made = family.sample_size(wanted)
        assert family.sample_size(made) == made
        assert made.width * made.height <= family.variant.max_sample_resolution**2


def test_width_stays_width_in_the_pixels():
    image = Image.new("RGB", (30, 20))
    image.paste((255, 0, 0), (0, 0, 15, 20))
    for family in TINY:
        for prepared in (family.prepare_control(image, Size(80, 48)), family.prepare_target(image, Size(80, 48))):
            assert prepared.shape == (1, 3, 48, 80)
            assert prepared[0, 0, :, :36].min() > 0.95 and prepared[0, 0, :, 44:].max() < 0.05


def test_the_pure_functions():
    assert [nearest_multiple(length, 16) for length in (1, 23, 25, 1024)] == [16, 16, 32, 1024]
    assert scaled(Size(1248, 832), 0.5, 16) == (624, 416)
    assert at_area_of(Size(300, 150), Size(800, 400), 16) == (800, 400)
    sizes = [Size(*size) for size in PREFERRED_KONTEXT_RESOLUTIONS]
    assert nearest_aspect(Size(10, 3000), sizes, 16) == (672, 1568)
    assert nearest_possible(Size(16, 4000), 64, 16) == (16, 128)
