"""Peak memory of drawing many objects on a 12-megapixel photo, beyond the photo itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PREDICT = """
import json, tempfile
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from data import rle
from engine import output
from mobileinst.set_prediction.postprocess import Postprocess, rank_by_objectness

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
rows, columns = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")

def outputs(count):
    y, x, radius = torch.rand(3, count, 1, 1, generator=generator).unbind()
    radius = 5 + 150 * radius / count**0.5
    masks = radius - (rows - 120 * y).hypot(columns - 160 * x)
    masks = torch.cat([masks, torch.full((100 - count, 120, 160), -9.0)])
    classes = torch.full((1, 100, 1), 3.0)
    return {"class_logits": classes, "objectness": classes, "mask_logits": masks[None]}

process = Postprocess(rank_by_objectness)
image = Image.fromarray(np.full((3000, 4000, 3), 90, np.uint8))
sizes = [((480, 640), (480, 640), (3000, 4000))]
costs = []
for count in (0, 0, 100):
    detections = outputs(count)
    [found] = process(detections, sizes, 0.1, encode=rle.encode)
    with tempfile.TemporaryDirectory() as folder:
        written = output.Output(Path(folder), [{"id": 1, "name": "thing"}])
        written.collect(written.write_images(1, "photo.jpg", image, found), Path("photo.jpg"))
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # kB
    costs.append([len(written.rows), int(peak) / 1024])
print(json.dumps(costs))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_objects_of_a_12_megapixel_photo_need_little_memory():
    root = Path(__file__).resolve().parents[2]
    # Freed memory goes back at once: the peak is what the code holds, not what malloc keeps.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", PREDICT]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    _, (none, memory), (count, more_memory) = json.loads(done.stdout)
    assert none == 0 and count == pytest.approx(100, rel=0.1)
    assert more_memory - memory < 400
