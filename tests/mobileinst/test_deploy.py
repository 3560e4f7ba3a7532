"""Models made ready for use answer as the trained ones."""

import copy

import pytest
import torch
from torch import nn

from mobileinst import zoo
from mobileinst.deploy import fold_batchnorms

SMALL = dict(width=16, num_queries=7, query_width=16, num_heads=4)
MODELS = [f"mobileinst_{name}" for name in ("topformer_tiny", "seaformer_tiny", "mobilenet_v2")]
MODELS += ["mobileinst_efficientnet_lite0", "mask2former_mobilenet_v2"]


def trained(name, **keywords):
    """A model whose BatchNorms have statistics, scales and shifts of their own."""
    small = SMALL if name.startswith("mobileinst") else dict(width=32, num_queries=7, num_heads=4)
    torch.manual_seed(0)
    model = zoo.build(name, 3, **small | keywords)[0].eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2)
            for values in (module.bias.data, module.running_mean):
                values.normal_(std=0.2)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_no_batchnorm_is_left_and_answers_are_the_same(name):
    model = trained(name, **{"mask_stride": 4} if name == "mobileinst_topformer_tiny" else {})
    before, images = copy.deepcopy(model.state_dict()), torch.rand(2, 3, 64, 128)
    folded = fold_batchnorms(model.train())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training and not any(one.requires_grad for one in folded.parameters())
    assert model.training and all(one.requires_grad for one in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        wanted, found = model.eval().double()(images.double()), folded(images)
    for key in ("class_logits", "mask_logits", "pixel_features"):
        spread = (wanted[key].max() - wanted[key].min()).item()
        torch.testing.assert_close(found[key].double(), wanted[key], rtol=0, atol=2e-3 * spread)


def test_parts_that_use_their_norms_in_another_order_are_left_as_they_are():
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
            self.norm_one, self.norm_two = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

        def forward(self, x):
            return self.norm_two(self.two(self.norm_one(self.one(x)).relu())).relu()

    model = trained("mobileinst_topformer_tiny")
    model.backbone.tpm.stem = Stem()
    for values in (one.weight.data for one in model.modules() if isinstance(one, nn.BatchNorm2d)):
        values.uniform_(0.5, 2)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model.eval()(images)
        found = fold_batchnorms(model)(images)
    torch.testing.assert_close(found["mask_logits"], wanted["mask_logits"], rtol=1e-3, atol=1e-4)
