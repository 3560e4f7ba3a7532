"""Smaller forms of an exported ONNX file: float16, and int8 with ranges from real images."""

import ast
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from engine import files
from engine.backends import onnx_session
from engine.log import info, progress

SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the paths of the modules around it
MODEL = "deployed.model."
MAPS = "kernels · pixel features"
PRODUCTS = "products of activations"
# Our choices, IoUs with the masks of the float model: the median of a part alone; the median and
# the worst of the whole, with room to the limits of the parity table, whose images are others.
ALONE = 0.995
TOGETHER = 0.97, 0.9
SMALLEST = 4  # cells of a mask that is compared; of smaller ones every cell counts much
STEP = 4  # masks are compared at this many times their grid


class Sensitivity(NamedTuple):
    """The effect of int8 in one part on the calibration images.

    median, worst: IoU of masks with the float model. score: largest difference. weights: share.
    """

    part: str
    median: float
    worst: float
    score: float
    weights: float


def to_float16(source: Path, target: Path) -> None:
    """Writes the model with weights and activations in float16; inputs and outputs stay as before.

    The comparison with the pad colour and the sums over masks stay in float32: float16 lacks the
    precision and the range. So do maps finer than 1/8, our choice: they cause half of the
    difference of the results and are 1 % of the file.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    name_nodes(model.graph)
    _, height, width, _ = shape(model.graph.input[0])
    fine = {
        each.name
        for each in model.graph.value_info
        if len(sides := shape(each)) == 4
        and sides[2] > height / 8
        and sides[2] * width == sides[3] * height  # a map, not attention or the windows of Swin
    }
    kept = [
        node.name
        for node in model.graph.node
        if not scope(node).startswith(MODEL) or node.output[0] in fine
    ]
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept), target)


def to_int8(source: Path, target: Path, images: Sequence[np.ndarray], threshold: float) -> None:
    """Writes the model with int8 convolutions and linear layers, and the rest in float32. The
    effect of each part and of the whole is printed, and written beside the model as int8.csv.

    Each part is measured alone. One that changes the masks too much is measured in pieces, and
    pieces that do so stay in float. If the whole still changes them too much, the worst pieces
    return to float, one by one. Products of activations (attention, kernels times pixel features)
    are measured and stay in float: they have no weights, take little time, and cost most.

    Args:
        images: uint8 [1,H,W,3] each, for the ranges of activations and to compare detections on.
        threshold: detections with higher scores are compared, at least one of each image.
    """
    with tempfile.TemporaryDirectory() as temporary:
        search = Search(source, Path(temporary), images, threshold)
        table, chosen = [], []
        for part, names in search.parts.items():
            pieces = search.pieces(names)
            table.append(search.measure(part, names))
            if PRODUCTS in part or part == MAPS:
                continue
            if table[-1].median >= ALONE:
                chosen.append((table[-1], names))
            elif len(pieces) > 1:
                for piece, few in pieces.items():
                    table.append(search.measure(piece, few))
                    if table[-1].median >= ALONE:
                        chosen.append((table[-1], few))
        chosen.sort(key=lambda pair: pair[0].median)
        while True:
            together = [name for _, names in chosen for name in names]
            whole = search.measure("together", together)
            good = whole.median >= TOGETHER[0] and whole.worst >= TOGETHER[1]
            if good or not chosen:
                break
            info(f"back to float: {chosen.pop(0)[0].part}")
        info(f"in float as well: {PRODUCTS} and {MAPS}")
        shutil.move(search.file, target)  # that of the last measurement
    rows = [Sensitivity._fields, *table, whole]
    files.write_csv(target.with_name("int8.csv"), rows, "choose another --out")


class Search:
    """The float model, its detections, the ranges of its tensors, and models with parts in int8."""

    def __init__(
        self, source: Path, folder: Path, images: Sequence[np.ndarray], threshold: float
    ) -> None:
        import onnx

        self.model, self.file = onnx.load(source), folder / "int8.onnx"
        self.images, self.threshold = images, threshold
        name_nodes(self.model.graph)
        onnx.save(self.model, folder / "float.onnx")
        self.detections = [self.chosen(*each) for each in run(folder / "float.onnx", images)]
        self.ranges = ranges(folder, images)
        self.weights = {each.name: each for each in self.model.graph.initializer}
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.parts = grouped(filter(self.is_layer, self.model.graph.node), self.part_of)

    def is_layer(self, node) -> bool:
        """Whether it is a matrix product or a convolution, but the first, which costs layout
        changes.
        """
        if node.op_type == "Conv" and node.input[1] in self.weights:
            return self.weights[node.input[1]].dims[1] != 3
        return node.op_type == "MatMul" and scope(node).startswith(MODEL[:-1])

    def part_of(self, node) -> str:
        """The part of the model that a layer belongs to."""
        first, *names = scope(node).removeprefix(MODEL[:-1]).split(".")[1:] or [MAPS]
        if first != MAPS and node.op_type == "MatMul" and node.input[1] not in self.weights:
            return f"{first}, {PRODUCTS}"
        return f"{first}.heads" if "heads" in names else first

    def pieces(self, names: list[str]) -> dict[str, list[str]]:
        """The layers of a part by the first three names of their paths."""

        def piece(node) -> str:
            return "  " + ".".join(scope(node).removeprefix(MODEL).split(".")[:3])

        return grouped((self.nodes[name] for name in names), piece)

    def write(self, names: Sequence[str]) -> None:
        """Writes to `file` the model with these layers in int8, and the activations after them."""
        import onnx
        from onnxruntime.quantization import QDQQuantizer, QuantType

        made = {output for name in names for output in self.nodes[name].output}
        joined = [
            node.name
            for node in self.model.graph.node
            if node.op_type in ("Relu", "Clip") and node.input[0] in made
        ]
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        quantiser = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=[*names, *joined] or ["none"],
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv", "MatMul", "Relu", "Clip"],
            extra_options={},
        )
        quantiser.quantize_model()
        onnx.save(quantiser.model.model, self.file)

    def measure(self, part: str, names: Sequence[str]) -> Sensitivity:
        """Compares the detections with these layers in int8 with those of the float model."""
        self.write(names)
        ious, differences = [], []
        for (queries, classes, scores, masks), outputs in zip(
            self.detections, run(self.file, self.images), strict=True
        ):
            differences.append(np.abs(outputs[0][0, queries, classes] - scores))
            ious.append(mask_ious(masks, outputs[1][0, queries]))
        ious, differences = np.concatenate(ious), np.concatenate(differences)
        sizes = {name: np.prod(each.dims) for name, each in self.weights.items()}
        held = sum(sizes.get(name, 0) for each in names for name in self.nodes[each].input)
        found = Sensitivity(
            part,
            float(np.median(ious)),
            float(ious.min()),
            float(differences.max()),
            float(held / sum(sizes.values())),
        )
        info(
            f"{part:<46} masks {found.median:.3f} median {found.worst:.3f} worst, scores "
            f"{found.score:.4f}, weights {100 * found.weights:.0f} %"
        )
        return found

    def chosen(self, scores: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Queries, classes, scores and masks of the detections of an image that are compared."""
        best, cells = scores[0].max(1), (masks[0] > 0).sum((1, 2))  # [Q] twice
        large = cells >= min(SMALLEST, cells.max())
        queries = np.flatnonzero(large & ((best > self.threshold) | (best == best[large].max())))
        return queries, scores[0, queries].argmax(1), best[queries], masks[0, queries]


def mask_ious(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoUs of masks [M,h,w], given as logits minus the cut, on a finer grid: -> [M]."""
    fine = [
        F.interpolate(torch.from_numpy(each)[None], scale_factor=STEP, mode="bilinear")[0] > 0
        for each in (ones, others)
    ]
    shared, either = (fine[0] & fine[1]).sum((1, 2)), (fine[0] | fine[1]).sum((1, 2))
    return torch.where(either > 0, shared / either.clamp(min=1), 1.0).numpy()


def run(path: Path, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Scores and masks of each image."""
    session = onnx_session(path)
    return [session.run(None, {"image": image}) for image in images]


def ranges(folder: Path, images: Sequence[np.ndarray]):
    """The least and largest value of every tensor that a layer reads or makes, over the images."""
    from onnxruntime.quantization import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(progress(images, desc="calibrating", leave=False))

        def get_next(self) -> dict | None:
            image = next(self.left, None)
            return None if image is None else {"image": image}

    calibrator = create_calibrator(
        folder / "float.onnx",
        ["Conv", "MatMul", "Relu", "Clip"],
        augmented_model_path=str(folder / "ranges.onnx"),
    )
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def name_nodes(graph) -> None:
    """Names the nodes that have no name."""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def shape(value) -> list[int]:
    """The fixed shape of an input or of a value in the graph."""
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


def scope(node) -> str:
    """The path of the module that a node belongs to; empty if the file does not name it."""
    scopes = {each.key: each.value for each in node.metadata_props}.get(SCOPES, "[]")
    with suppress(IndexError, SyntaxError, ValueError):
        return ast.literal_eval(scopes)[-2]
    return ""


def grouped(nodes, key) -> dict[str, list[str]]:
    """Groups the names of nodes by a key, in the order of the graph."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node.name)
    return groups
