"""The example of the READMEs: a part of one's own in the place of a standard one."""

import re
from pathlib import Path

import pytest
import torch

from mobileinst import zoo
from tests.small import make_target

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_own_part_of_the_readme_works_and_is_short(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    (code,) = [block for block in blocks if "pixel_decoder=" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    names = {"__name__": "own"}
    exec(compile(code, page, "exec"), names)  # noqa: S102  our own page
    config = zoo.config_for("mask2former_swin_tiny", num_classes=3, num_layers=2)
    model, criterion, _ = names["build"](config, seed=1)
    assert type(model.pixel_decoder).__name__ == "FeaturePyramid"
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    sum(criterion(model.train()(images), [make_target([2])]).values()).backward()
    assert all(p.grad is not None for p in model.pixel_decoder.parameters())
    standard = zoo.build(config, 3, seed=1)[0].backbone.state_dict()
    own = model.backbone.state_dict()
    assert all(torch.equal(value, standard[name]) for name, value in own.items())


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readme_is_short_and_names_every_script(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(text.split()) <= 1800
    scripts = {path.name for path in (ROOT / "sbin").glob("*.sh")} - {"setup.sh"}
    assert set(re.findall(r"^\| `sbin/([\w.]+)`", text, re.M)) == scripts


PAGES = [*ROOT.glob("README*.md"), *sorted((ROOT / "assets").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scripts_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    for script in re.findall(r"sbin/[\w.]+\.sh", text):
        assert (ROOT / script).is_file(), script
