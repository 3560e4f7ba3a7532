"""The curves of runs: what is read from a run folder, and the figure."""

import csv

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from engine import log
from engine.report import curves


def test_reads_what_the_run_logged(toy_run):
    run = curves.read_run(toy_run)
    rows = log.read_jsonl(toy_run / "log.jsonl")
    assert run["loss"].tolist() == [row["loss"] for row in rows]
    assert (np.diff(run["minutes"]) >= 0).all() and run["minutes"][0] > 0
    with open(toy_run / "metrics.csv", newline="") as file:
        evaluations = list(csv.reader(file))[1:]
    assert len(run["AP"]) == len(run["evaluated"]) == len(evaluations) == 2
    assert run["evaluated"][-1] == run["minutes"][-1]
    assert np.isnan(run["train AP"]).all()  # an overfit run


def test_smoothing_is_a_mean_that_keeps_constants_and_ends():
    assert curves.smooth(np.full(40, 3.0)) == pytest.approx(np.full(40, 3.0))
    noisy = np.random.default_rng(0).normal(size=40)
    smoothed = curves.smooth(noisy, 5)
    assert smoothed[20] == pytest.approx(noisy[18:23].mean())
    assert smoothed[0] == pytest.approx(noisy[:3].mean())


def test_draws_several_runs_into_one_figure(toy_run, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "deep" / "curves.png"
    curves.main([str(toy_run), str(toy_run), "--out", str(out)])
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.shape[0] > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run with an evaluation"):
        curves.read_run(tmp_path)
