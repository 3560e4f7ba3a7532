"""The benchmark of a training: one row per recipe."""

from engine.tools import benchmark_training


def test_a_recipe_is_measured(tiny, capsys):
    benchmark_training.main(["--recipes", "demo", "--steps", "2", *tiny])
    name, speed, memory, waiting = capsys.readouterr().out.splitlines()[1].split()
    assert name == "demo" and float(speed) > 0 and float(memory) > 0.1
    assert 0 < float(waiting.rstrip("%")) < 100
