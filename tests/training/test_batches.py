from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.coco import CocoImage, Instance, read_coco
from zarrmask.coco.region import Region
from zarrmask.training.annotated import AnnotatedBatches, held_out, shuffled
from zarrmask.training.augment import crop_shape, draw_change
from zarrmask.training.batches import boxes_of, example
from zarrmask.training.recipe import Recipe
from zarrmask.training.simulated import SimulatedBatches, simulated_lesson


def same(one, other):
    return all(
        torch.equal(a, b) and all(torch.equal(s[name], t[name]) for name in s)
        for a, s, b, t in zip(*one, *other, strict=True)
    )


def well_formed(images, targets):
    for image, target in zip(images, targets, strict=True):
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 255
        assert target["masks"].shape[1:] == image.shape[1:]
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            inside = mask[box[1] : box[3], box[0] : box[2]]
            assert inside.sum() == mask.sum() > 0


def test_simulated_batches_are_well_formed_and_the_same_whenever_made(config):
    recipe = simulated_lesson(config).recipe
    batches = SimulatedBatches(recipe, 3)
    for iteration in range(20):
        images, targets = batches[iteration]
        assert len(images) == 2
        assert len({image.shape for image in images}) == 1
        well_formed(images, targets)
    assert same(batches[20], SimulatedBatches(recipe, 3)[20])
    assert not same(batches[20], SimulatedBatches(recipe, 4)[20])


def test_boxes_fit():
    masks = np.zeros((1, 9, 12), np.uint8)
    masks[0, 2:5, 3:10] = 1
    assert boxes_of(masks).tolist() == [[3, 2, 10, 5]]
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_boxes_have_a_margin_within_the_image():
    masks = np.zeros((2, 9, 12), np.uint8)
    masks[0, 2:6, 3:9] = masks[1] = 1
    assert boxes_of(masks, 0.5).tolist() == [[1.5, 1, 10.5, 7], [0, 0, 12, 9]]
    _, target = example(masks[0], masks[:1], np.array([0]), 0.5)
    assert target["boxes"].tolist() == [[1.5, 1, 10.5, 7]]


def test_what_was_cropped_away_is_left_out():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[1, 1, 2] = 1
    _, target = example(np.zeros((4, 4), np.uint8), masks, np.array([4, 6]))
    assert target["labels"].tolist() == [7]
    assert target["boxes"].tolist() == [[2, 1, 3, 2]]


@pytest.mark.parametrize("kind", ["relative", "relative_range", "absolute", "absolute_range"])
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 99),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_crops_are_of_the_size_asked_for(kind, height, width, seed, sides):
    rng = np.random.default_rng(seed)
    size = tuple(side / 40 for side in sides) if "relative" in kind else tuple(sorted(sides))
    recipe = Recipe(cropped=True, crop_type=kind, crop_size=size)
    crop = crop_shape(rng, recipe, height, width)
    for side, whole, asked in zip(crop, (height, width), size, strict=True):
        assert 1 <= side <= whole
        if kind == "relative":
            assert side == max(int(whole * asked + 0.5), 1)
        elif kind == "relative_range":
            assert side >= int(whole * asked + 0.5)
        elif kind == "absolute":
            assert side == min(asked, whole)
        else:
            assert min(size[0], whole) <= side <= size[1]


@given(
    seed=st.integers(0, 999),
    flip=st.sampled_from(["none", "horizontal", "vertical"]),
    cropped=st.booleans(),
    short=st.integers(20, 90),
)
def test_image_and_mask_are_changed_alike(seed, flip, cropped, short):
    rng = np.random.default_rng(seed)
    mask = np.zeros((50, 70), bool)
    y, x = rng.integers(0, 40, 2)
    mask[y : y + 20, x : x + 25] = True
    recipe = Recipe(short=(short,), flip=flip, cropped=cropped, crop_size=(0.6, 0.7))
    change = draw_change(rng, recipe, *mask.shape)
    image = change.image(mask * np.uint8(255))
    assert min(image.shape) == short
    np.testing.assert_array_equal(change.mask(mask), image >= 128)


@pytest.mark.parametrize("flip", ["vertical", "horizontal"])
def test_a_flip_mirrors(flip):
    mask = np.arange(100).reshape(10, 10).astype(np.uint8)
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        change = draw_change(rng, Recipe(short=(10,), flip=flip), 10, 10)
        seen.add(change.image(mask).tobytes())
    mirrored = mask[::-1] if flip == "vertical" else mask[:, ::-1]
    assert seen == {mask.tobytes(), mirrored.tobytes()}


@pytest.mark.parametrize(
    ("sampling", "shape", "sides"),
    [
        ("range", (50, 60), {20, 21, 22, 23, 24}),
        ("choice", (50, 60), {20, 24}),
        ("range", (50, 200), {15}),  # the longer side would surpass the limit
    ],
)
def test_images_are_brought_to_the_sizes_asked_for(sampling, shape, sides):
    recipe = Recipe(short=(20, 24), sampling=sampling, limit=60)
    drawn = [
        draw_change(np.random.default_rng(seed), recipe, *shape).image(np.zeros(shape, np.uint8))
        for seed in range(100)
    ]
    assert {min(image.shape) for image in drawn} == sides
    assert max(max(image.shape) for image in drawn) <= 60


def test_labels_are_those_of_the_categories(plain, annotate, tmp_path):
    """The first category is label 1, background 0."""
    dataset = read_coco(*annotate(tmp_path, 2))
    recipe = simulated_lesson(plain).recipe
    batches = AnnotatedBatches(dataset.images, replace(recipe, batch=6), 5)
    _, targets = batches[0]
    for place, target in enumerate(targets):
        number = int(dataset.images[shuffled(place, 6, 5)].path.stem)
        assert target["labels"].tolist() == ([1 + number % 2] if number < 5 else [])


def test_annotated_batches_are_well_formed_and_shared_by_processes(plain, annotated):
    dataset = read_coco(*annotated)
    recipe = simulated_lesson(plain).recipe
    whole = AnnotatedBatches(dataset.images, recipe, 5)
    for iteration in range(6):
        images, targets = whole[iteration]
        assert len(images) == 2
        well_formed(images, targets)
        halves = [
            AnnotatedBatches(dataset.images, recipe, 5, rank=rank, processes=2)[iteration]
            for rank in (0, 1)
        ]
        assert same((images, targets), tuple(a + b for a, b in zip(*halves, strict=True)))


@given(count=st.integers(1, 30), seed=st.integers(0, 9))
def test_all_come_once_before_any_comes_twice(count, seed):
    for turn in range(3):
        places = range(turn * count, (turn + 1) * count)
        assert sorted(shuffled(place, count, seed) for place in places) == list(range(count))


@given(
    annotated=st.lists(st.booleans(), min_size=1, max_size=100),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 9),
)
def test_held_out(annotated, fraction, seed):
    """Some images with instances are learned from, and some judge: the others' share is its own."""
    instance = Instance(0, Region.of_mask(np.ones((2, 3), bool)))
    images = [
        CocoImage(n, Path(f"{n}.png"), 2, 3, instances=(instance,) * is_annotated)
        for n, is_annotated in enumerate(annotated)
    ]
    kept, out = held_out(images, fraction, seed)
    assert sorted(image.id for image in kept + out) == list(range(len(images)))
    with_instances = sum(annotated)
    judges = sum(bool(image.instances) for image in out)
    if with_instances < 2 or not fraction:
        assert not out
        return
    assert judges == min(max(round(with_instances * fraction), 1), with_instances - 1)
    assert len(out) - judges == round((len(images) - with_instances) * fraction)
