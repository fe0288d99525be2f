"""Locations of images, as paths and as URLs."""

import pytest

from selftaught.data.io.filesystem import normalize_location


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https:/host/photos/", "https://host/photos"),  # as pathlib writes it
        ("https://host/photos", "https://host/photos"),
        ("s3://bucket/photos/", "s3://bucket/photos"),
        ("memory:///photos", "memory:///photos"),  # the third slash begins the path
        ("file:///photos/", "/photos"),
        ("photos/", "photos"),
    ],
)
def test_a_location_keeps_its_path(location: str, expected: str) -> None:
    assert normalize_location(location) == expected
