"""Keywords of the builder: text becomes a value of the type that the config has."""

import pytest

from data.errors import InputError
from engine import options

MODEL = "mask2former_swin_tiny"


def test_keywords_take_the_types_of_the_config():
    pairs = [("depths", "2,2,6,2"), ("frozen_norms", "true"), ("drop_path", "0"), ("width", "64")]
    values = options.builder_keywords(MODEL, pairs)
    assert values == {
        "depths": (2, 2, 6, 2), "frozen_norms": True, "drop_path": 0.0, "width": 64
    }  # fmt: skip
    assert type(values["drop_path"]) is float
    assert options.builder_keywords(MODEL, [("depths", "3")]) == {"depths": (3,)}


@pytest.mark.parametrize(
    "key, text, message",
    [
        *(
            ("depths", text, "whole numbers from 1 to 100, as 2,2,6")
            for text in ("2,,6", "", "2 6")
        ),
        ("frozen_norms", "yes", "frozen_norms is yes, and can be true or false"),
        ("width", "6.5", "width is 6.5, and can be a whole number from 1 to 8192"),
        ("drop_path", "nan", "drop_path is nan, and can be a number from 0 to 0.99"),
        ("importance", "2", "importance is 2.0, and can be a number from 0 to 1; change"),
        ("kv_stride", "32", "mask2former has no keyword 'kv_stride'; it has backbone, .*width"),
        ("num_classes", "3", "follows from the data"),
    ],
)
def test_a_wrong_keyword_is_refused(key, text, message):
    with pytest.raises(InputError, match=f"--set.*{message}"):
        options.builder_keywords(MODEL, [(key, text)])
