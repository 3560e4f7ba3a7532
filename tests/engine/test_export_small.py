"""The float16 and int8 files of an export, and its page in a browser."""

import csv
import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from engine import backends, export, predict, web_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_smaller_files_answer_nearly_alike(exported):
    rows = {row["file"]: row for row in rows_of(exported / "parity.csv")}
    half, int8 = rows["model.fp16.onnx"], rows["model.int8.onnx"]
    # A network of a few channels that overfits is no measure of the limits.
    assert float(half["score_difference"]) < 0.03 and float(half["mask_iou_median"]) > 0.99
    assert float(half["megabytes"]) < 0.6 * float(rows["model.onnx"]["megabytes"])
    assert int(int8["detections"]) >= 6 and float(int8["mask_iou_median"]) > 0.9
    assert float(int8["megabytes"]) < 0.6 * float(rows["model.onnx"]["megabytes"])
    meta = json.loads((exported / "model.json").read_text())
    assert list(meta["files"]) == ["model.onnx", "model.fp16.onnx", "model.int8.onnx"]


def test_inputs_and_outputs_stay_those_of_the_contract(exported):
    import onnx

    def ends(name: str) -> list[tuple]:
        graph = onnx.load(exported / name).graph
        return [
            (each.name, each.type.tensor_type.elem_type, str(each.type.tensor_type.shape))
            for each in (*graph.input, *graph.output)
        ]

    assert ends("model.fp16.onnx") == ends("model.int8.onnx") == ends("model.onnx")
    assert backends.load(exported / "model.int8.onnx").preset.canvas == (64, 128)


def test_the_sensitivity_of_every_part_is_listed(exported):
    rows = {row["part"]: row for row in rows_of(exported / "int8.csv")}
    parts = ["backbone", "mask_decoder", "instance_decoder", "instance_decoder.heads"]
    parts += ["instance_decoder, products of activations", "kernels · pixel features", "together"]
    assert set(parts) <= rows.keys()
    for part, row in rows.items():
        assert 0 <= float(row["worst"]) <= float(row["median"]) <= 1, part
    assert 0.3 < float(rows["backbone"]["weights"]) < 1
    assert float(rows["kernels · pixel features"]["weights"]) == 0


def test_int8_has_integer_layers_and_keeps_products_in_float(exported):
    import onnx

    graph = onnx.load(exported / "model.int8.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    constants = {each.name for each in graph.initializer}

    def is_int8(node) -> bool:
        return all(
            each in made and made[each].op_type == "DequantizeLinear" for each in node.input[:2]
        )

    assert any(is_int8(node) for node in graph.node if node.op_type == "Conv")
    first = next(node for node in graph.node if node.op_type == "Conv")
    assert not is_int8(first)
    products = [
        node
        for node in graph.node
        if node.op_type == "MatMul"
        and not any(made[each].input[0] in constants for each in node.input if each in made)
        and not constants & set(node.input)
    ]
    assert products and not any(map(is_int8, products))


def test_what_the_page_needs_is_in_one_folder(exported):
    names = {path.name for path in (exported / "web").iterdir()}
    assert names == {
        *("index.html", "decode.js", "model.onnx", "model.json"),
        *("ort.js", "ort-wasm-simd-threaded.wasm"),
    }
    text = (exported / "web" / "index.html").read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text  # nothing from elsewhere


def test_a_missing_runtime_is_reported_before_anything_is_written(
    trained, toy_coco, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        backends, "require_packages", lambda *_: None
    )  # also where they are missing
    argv = ["--checkpoint", trained, "--images", toy_coco / "train"]
    argv += ["--size", "64x128", "--threads", "1", "--allow-mismatch", "--out", tmp_path / "x"]
    argv += ["--web", "--web-runtime", tmp_path]
    monkeypatch.setattr(export, "write", lambda *_: pytest.fail("a model was written"))
    with pytest.raises(InputError, match="holds no dist/ort.*; give the folder of the npm package"):
        export.main([str(each) for each in argv])
    assert not (tmp_path / "x").exists()


def test_why_npm_gives_no_runtime_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(web_page.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--web needs npm .* --web-runtime"):
        web_page.fetch(tmp_path)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(web_page.shutil, "which", lambda name: str(npm))
    with pytest.raises(InputError, match=r"npm cannot fetch onnxruntime-web@.* \(no network\)"):
        web_page.fetch(tmp_path)
    npm.write_text("#!/bin/sh\necho other > onnxruntime-web.tgz\n")
    with pytest.raises(InputError, match="not the published onnxruntime-web"):
        web_page.fetch(tmp_path)


# Loads the page in a frame and sends what it found to the server of the test.
WAITING = """<iframe src="index.html?image=drawn.png" width="800" height="600"></iframe><script>
setInterval(() => {
  const page = document.querySelector("iframe").contentDocument;
  const text = page.getElementById("detections")?.textContent;
  if (text) fetch("detections", { method: "POST", body: text });
}, 100);
</script>"""


@pytest.fixture
def site(tmp_path):
    """A static server of a folder, with a queue of what is posted to it: folder, queue, address."""
    detections: queue.Queue[str] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            detections.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "site", detections, f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_the_page_finds_what_predict_finds(exported, toy_coco, site, tmp_path):
    root, detections, address = site
    try:
        package = web_page.fetch(tmp_path)
    except InputError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")
    web_page.write(root, exported, package)
    shutil.copyfile(toy_coco / "train" / "0.png", root / "drawn.png")
    (root / "waiting.html").write_text(WAITING)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}"]
    with subprocess.Popen(
        [*command, f"{address}/waiting.html"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        try:
            found = json.loads(detections.get(timeout=120))
        finally:
            browser.terminate()
    argv = ["--checkpoint", exported / "model.onnx", "--out", tmp_path / "p", "--device", "cpu"]
    predict.main([str(each) for each in [root / "drawn.png", *argv]])
    expected = json.loads((tmp_path / "p" / "objects.json").read_text())["annotations"]
    assert len(found) == len(expected) >= 2
    for detection, one in zip(found, expected):
        assert detection["id"] == one["category_id"]
        assert detection["score"] == pytest.approx(one["score"], abs=1e-3)
        left, top, width, height = one["bbox"]
        assert np.allclose(detection["box"], [left, top, left + width, top + height], atol=1)
        assert detection["area"] == pytest.approx(one["area"], rel=0.02, abs=4)


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_the_page_opened_as_a_file_says_how_to_serve_it(tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", (web_page.EXPORTED / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "python3 -m http.server" in done.stdout.partition('id="hint">')[2].partition("</p>")[0]
