"""A tiny model, its processor, and the cache of four images, for the tests of a cache and of its file."""

import pytest

from tests.model.rows import random_images
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor)


@pytest.fixture(scope="module")
def pixels(processor):
    return processor.pixels(random_images(4))


@pytest.fixture(scope="module")
def cache(model, pixels):
    return model.compress(pixels)
