"""The benchmark runs, and counts what the published tables count."""

from engine import benchmark
from mobileinst import zoo


def test_every_system_and_backbone_has_a_cost(monkeypatch):
    monkeypatch.setattr(
        zoo, "MODELS", {"mobileinst_topformer_tiny": zoo.config_for(zoo.names()[-1])}
    )
    monkeypatch.setattr(zoo, "BACKBONES", {"topformer_tiny": zoo.BACKBONES["topformer_tiny"]})
    rows = "\n".join(benchmark.costs(20))
    assert "1,293,888" in rows and "0.423 G" in rows  # TopFormer-T without injection at 512 x 512
    assert "mobileinst_topformer_tiny" in rows


def test_a_step_is_split_into_its_parts(capsys):
    argv = "--device cpu --threads 1 --image-size 64 --batch-size 2 --rounds 1 --set query_width=32"
    benchmark.main(argv.split())
    printed = capsys.readouterr().out
    assert "pictures/s" in printed and "matching" in printed and "self_attention=false" in printed
