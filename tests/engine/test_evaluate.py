"""Evaluation of a model in memory and of its checkpoint."""

import json

import pytest

from engine import evaluate, train


@pytest.mark.parametrize("average", ["0", "0.5"])
def test_scores_in_training_are_those_of_the_saved_weights(
    tiny, tmp_path, no_finish, monkeypatch, average
):
    """Bit for bit: both run on weights that require no gradients."""
    evaluated, infer = [], evaluate.run_inference

    def run_inference(model, *args, **keywords):
        flags = [parameter.requires_grad for parameter in model.parameters()]
        evaluated.append(infer(model, *args, **keywords))
        assert flags == [parameter.requires_grad for parameter in model.parameters()]
        return evaluated[-1]

    monkeypatch.setattr(evaluate, "run_inference", run_inference)
    lengths = ["--iterations", "3", "--eval-every", "3", "--average", average]
    train.main([*tiny, *lengths, "--out", str(tmp_path / "run")])
    common = ["--device", "cpu", "--threads", "1", "--workers", "0"]
    evaluate.main(["--checkpoint", str(tmp_path / "run" / "best.pt"), *common])
    in_training, of_file = evaluated
    assert in_training == of_file and len(of_file) > 20
    results = json.loads((tmp_path / "run" / "test-001" / "best_val_results.json").read_text())
    assert [each["score"] for each in results["detections"]] == [each["score"] for each in of_file]
