"""Keywords of the builder: text becomes a value of the type that the config has."""

from dataclasses import dataclass

import pytest

from data.errors import InputError
from engine import options


@dataclass
class Config:
    num_classes: int = 80
    depths: tuple[int, ...] = ()
    guided: bool = False
    factor: float = 0.5


def test_keywords_take_the_types_of_the_config(monkeypatch):
    monkeypatch.setattr(options.zoo, "config_for", lambda name, **others: Config(**others))
    pairs = [("depths", "2,2,6,2"), ("guided", "true"), ("factor", "1")]
    values = options.builder_keywords("any", pairs)
    assert values == {"depths": (2, 2, 6, 2), "guided": True, "factor": 1.0}
    assert options.builder_keywords("any", [("depths", "3")]) == {"depths": (3,)}
    for text in ("2,,6", "2,x", "", "2 6"):
        with pytest.raises(InputError, match="wants whole numbers, as depths=2,2,6"):
            options.builder_keywords("any", [("depths", text)])
