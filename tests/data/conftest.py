"""Small data sets on disk, made on the spot, and a cache folder that is not the user's."""

import os
from pathlib import Path

import pytest
import torch
from making import some_events, write_npz, write_picture

from spikformer_edu.data.cifar10 import INFO as CIFAR10


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_files_of_the_user(session_cache, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


@pytest.fixture
def user_cache(tmp_path_factory, monkeypatch) -> Path:
    """An empty user cache, for tests that look into it."""
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("SPIKFORMER_DATA")
    if not folder or not (Path(folder) / "cifar10" / "train").is_dir():
        pytest.skip("real data are not here: set SPIKFORMER_DATA")
    return Path(folder)


@pytest.fixture
def recordings(tmp_path) -> Path:
    """A data directory with CIFAR10DVS: ten classes of three recordings in .npz."""
    for label, name in enumerate(CIFAR10.classes):
        for i in range(3):
            write_npz(tmp_path / "CIFAR10DVS" / name / f"cifar10_{name}_{i}.npz", some_events(500, 10 * label + i))
    return tmp_path


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A data directory with cifar10 as class folders: four training and two test images a class, in three formats."""
    for label, name in enumerate(CIFAR10.classes):
        for i in range(6):
            split, suffix = ("train" if i < 4 else "test"), (".png", ".webp", ".bmp")[i % 3]
            write_picture(tmp_path / "cifar10" / split / name / f"{i}{suffix}", 10 * label + i)
    return tmp_path
