"""data/readers/yaml.py: what data.yaml files use, each with the value that YAML gives it."""

import pytest

from data.errors import InputError
from data.readers import yaml

GOOD = {
    "a list in brackets": ("names: ['a', \"b\", c d , 0]\n", {"names": ["a", "b", "c d", "0"]}),
    "over lines": ("names: [\n  a,  # first\n  'b, c',\n]\nnc: 2",
                   {"names": ["a", "b, c"], "nc": "2"}),
    "a record in brackets": ("names: {0: a, 1: 'b: c'}", {"names": {"0": "a", "1": "b: c"}}),
    "a block of keys": ("names:\n  0: a\n  1: no # comment\n", {"names": {"0": "a", "1": "no"}}),
    "a block of items": ("names:\n  - a\n  - b c\nnc: 2", {"names": ["a", "b c"], "nc": "2"}),
    "items without indentation": ("names:\n- a\n- 'b'\nnc: 2", {"names": ["a", "b"], "nc": "2"}),
    "an apostrophe": ("names: [dog's, cat]\nowner: Bob's # x",
                      {"names": ["dog's", "cat"], "owner": "Bob's"}),
    "paths": (
        "path: C:/Users/a b/data  # root\ntrain: ..\\train\\images\nval: 'it''s'\ntest:",
        {"path": "C:/Users/a b/data", "train": "..\\train\\images", "val": "it's", "test": None},
    ),
    "escapes": (r'a: "C:\\data\x41\u00e4\n\q"', {"a": "C:\\dataAä\n\\q"}),
    "comments and blank lines": ("# top\n\na: 1 # x\n#b: 2\n   # c\nc: d#e\n",
                                 {"a": "1", "c": "d#e"}),
    "a document": ("---\r\na: b\r\n...\r\n", {"a": "b"}),
    "a nested block": ("roboflow:\n  license: CC BY 4.0\n  url: https://x/y:1\n",
                       {"roboflow": {"license": "CC BY 4.0", "url": "https://x/y:1"}}),
    "a program": ("download: |\n  import a\n\n  b: c\n    d\nnc: 1",
                  {"download": "import a\n\nb: c\nd", "nc": "1"}),
    "a list of lists": ("a: [[1, 2], [], {}]", {"a": [["1", "2"], [], {}]}),
    "commas and colons in texts": ("a: {b: 'x,]', c: , d: ':}', e: \":,\",}",
                                   {"a": {"b": "x,]", "c": None, "d": ":}", "e": ":,"}}),
    "nothing": ("# only this\n", None),
    "null": ("a: null\nb: ~\nc: ''\nd: []", {"a": None, "b": None, "c": "", "d": []}),
    "keys with quotes": ("'a b': 1\n\"c\": 2\nd e : 3", {"a b": "1", "c": "2", "d e": "3"}),
    "accents": ("names: [été, 虾]", {"names": ["été", "虾"]}),
}  # fmt: skip
BAD = {  # text: the line that is named
    "a: &x 1": 1,
    "a: 1\nb: *x": 2,
    "a: !!str 1": 1,
    "a: 1\na: 2": 2,
    "a: [1, 2": 1,
    "a: [,]": 1,
    "a: {b, c}": 1,
    "a: [1] b": 1,
    "\tb: 1": 1,
    "a: 1\n  b: 2": 2,
    "a:\n    b: 1\n  c: 2": 3,
    "just a text": 1,
    "a: 1\n- b": 2,
    "a:\n- b: 1": 2,
    "a:\n- - b": 2,
    "a: b: c": 1,
    "? a": 1,
    "a: 'b": 1,
    "a: 1\n---\nb: 1": 2,
    "a: {0: b, 0: c}": 1,
}


@pytest.mark.parametrize("name", GOOD)
def test_values(tmp_path, name):
    text, expected = GOOD[name]
    (tmp_path / "data.yaml").write_bytes(text.encode())
    assert yaml.load(tmp_path / "data.yaml") == expected
    (tmp_path / "data.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert yaml.load(tmp_path / "data.yaml") == expected


@pytest.mark.parametrize("text", BAD)
def test_what_is_more_of_yaml_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"data.yaml, line {BAD[text]}: .*write plain keys"):
        yaml.load(tmp_path / "data.yaml")


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match="save it as UTF-8"):
        yaml.load(path)
