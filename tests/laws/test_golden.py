"""A change of structure changes no number: losses and weights are those that were recorded before
it.
"""

import json
from pathlib import Path

import pytest

from selftaught.data import demo_images
from tests import golden

VALUES = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize(("name", "hard"), golden.CASES)
def test_losses_of_three_steps(name: str, hard: str) -> None:
    assert golden.record_losses(name, hard) == pytest.approx(
        VALUES["losses"][f"{name} {hard}"], rel=1e-7
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "images"
    demo_images.write(folder, seed=0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hard"), golden.RUNS)
def test_weights_of_a_run(name: str, hard: str, images: Path, tmp_path: Path) -> None:
    recorded = VALUES["weights"].get(golden.machine(), {}).get(f"{name} {hard}")
    if recorded is None:
        pytest.skip(
            f"no weights were recorded on {golden.machine()}: float32 rounds differently from"
            " machine to machine"
        )
    assert golden.hash_weights(name, hard, images, tmp_path / "run") == recorded
