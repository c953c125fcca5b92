"""What all tests share: how hypothesis draws, and a cache that is no user's."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first call of a kernel compiles it.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep memory maps and remembered hashes out of the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("pixmix-cache")
    os.environ["PIXMIX_CACHE"] = str(folder)
    return folder
