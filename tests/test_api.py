"""The public functions: pretrain and load."""

from pathlib import Path

import pytest

import selftaught
from selftaught.errors import UserError
from selftaught.runs import folder as run_folder
from tests.pictures import folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


def test_a_loaded_backbone_is_ready_for_use(images: Path, tmp_path: Path) -> None:
    out = selftaught.pretrain(
        images, out=tmp_path / "run", backbone="test_resnet", size=32, batch=8, steps=3
    )
    assert not selftaught.load(out).training
    with pytest.raises(UserError):
        selftaught.pretrain(images, out=tmp_path / "other", bogus=1)


def test_what_is_no_in_python_is_no(images: Path, tmp_path: Path) -> None:
    """It was left out: `freeze_patches` stayed at its default, which is yes."""
    small = {"backbone": "test_vit", "size": 32, "batch": 8, "steps": 1, "workers": 0}
    out = selftaught.pretrain(
        images,
        out=tmp_path / "run",
        method="moco-v3",
        method__freeze_patches=False,
        resume=False,
        **small,
    )
    assert run_folder.read_run(out).stage.method.freeze_patches is False  # type: ignore[attr-defined]
