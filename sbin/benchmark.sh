#!/usr/bin/env bash
# Costs of the models, parts of a training step, ratios between variants.
#   bash sbin/benchmark.sh [--help]
#   bash sbin/benchmark.sh --models NAME...   sizes and CPU time of an image, models side by side
#   bash sbin/benchmark.sh --checkpoint FILE   CPU time of each part of an evaluation
#   bash sbin/benchmark.sh --against transformers [--help]   Mask2Former beside that of transformers
#   bash sbin/benchmark.sh --against maskrcnn [--help]   AP of torchvision's Mask R-CNN on the same
#     backbone weights (--pretrained FILE), data (--data DIR) and CPU minutes (--cpu-minutes M)
#   bash sbin/benchmark.sh --against ultralytics --peer-python FILE [--help]   our phone models beside
#     a YOLO: ONNX Runtime, ExecuTorch, file -> masks, eager, training step. FILE is the Python of an
#     environment with ultralytics (AGPL; never needed here), onnx and onnxruntime
#   bash sbin/benchmark.sh --training [--help]   images per second, memory and waiting for data of the
#     recipes `small` and `coco` (640, 8 images, 11 GB), on --data DIR or the built-in demo set
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

requirements=(requirements.txt) entry=engine.tools.benchmark arguments=() data=() against=
while (($#)); do
  case $1 in
    --training) entry=engine.tools.benchmark_training ;;
    --against) against=${2:-nothing} && shift ;;
    --against=*) against=${1#*=} ;;
    *) arguments+=("$1") ;;
  esac
  shift || true
done
set -- ${arguments[@]+"${arguments[@]}"}
case $against in
  "") ;;
  transformers) entry=engine.tools.benchmark_mask2former requirements+=(requirements-dev.txt) ;;
  maskrcnn) entry=engine.tools.benchmark_maskrcnn ;;
  ultralytics) entry=engine.tools.benchmark_ultralytics requirements+=(requirements-export.txt) ;;
  *)
    echo "error: --against $against: give one of transformers, maskrcnn, ultralytics" >&2
    exit 2
    ;;
esac
use_python "${requirements[@]}"
if [ $entry = engine.tools.benchmark_training ] && ! has_data "$@"; then
  data=(--data datasets/demo/VOCdevkit/VOC2012)
  draw_demo_set pond datasets/demo "$@"
fi
exec "$python" -m $entry ${data[@]+"${data[@]}"} "$@"
