"""A small set of the demo that the test module is about."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from data.demo.files import Scene


@pytest.fixture(scope="module")
def drawn(request, tmp_path_factory) -> tuple[Path, list[Scene]]:
    """The set as written, with TRAIN and VAL images, and the scenes it was written from."""
    demo = importlib.import_module(f"data.demo.{request.module.__name__.rpartition('test_')[2]}")
    scenes, draw_scene = [], demo.draw_scene
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            demo, "draw_scene", lambda seed: scenes.append(draw_scene(seed)) or scenes[-1]
        )
        size = request.module.TRAIN, request.module.VAL
        return demo.write(tmp_path_factory.mktemp("set") / "demo", *size), scenes


@pytest.fixture
def folder(drawn) -> Path:
    return drawn[0]


@pytest.fixture
def scenes(drawn) -> list[Scene]:
    return drawn[1]
