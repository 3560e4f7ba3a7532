#!/usr/bin/env bash
# Costs of the models, parts of a training step and of an evaluation, ratios between variants.
#   bash sbin/benchmark.sh [--help]
#   bash sbin/benchmark.sh --models NAME...   sizes and CPU time of an image, models side by side
#   bash sbin/benchmark.sh --against transformers [--help]   Mask2Former beside that of transformers
#   bash sbin/benchmark.sh --against maskrcnn [--help]   AP of torchvision's Mask R-CNN on the same
#     backbone weights (--pretrained FILE), data (--data DIR) and CPU minutes (--cpu-minutes M)
#   bash sbin/benchmark.sh --against ultralytics --peer-python FILE [--help]   our phone models beside
#     a YOLO: ONNX Runtime, ExecuTorch, file -> masks, eager, training step. FILE is the Python of an
#     environment with ultralytics (AGPL; never needed here), onnx and onnxruntime
#   bash sbin/benchmark.sh --training [--help]   images per second, memory and waiting for data of the
#     recipes `small` and `coco` (640, 8 images, 11 GB), on --data DIR or the built-in demo set
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

requirements=(requirements.txt) entry=engine.tools.benchmark arguments=() data=()
for argument in "$@"; do
  case $argument in
    --training) entry=engine.tools.benchmark_training ;;
    --against | --against=*) entry=engine.tools.benchmark_peers arguments+=("$argument") ;;
    *) arguments+=("$argument") ;;
  esac
done
if [[ " $* " =~ " --against"[=\ ](maskrcnn|ultralytics)" " ]]; then
  entry=engine.tools.benchmark_${BASH_REMATCH[1]}
  if [ $entry = engine.tools.benchmark_ultralytics ]; then
    requirements+=(requirements-export.txt)
  fi
elif [ $entry = engine.tools.benchmark_peers ]; then
  requirements+=(requirements-dev.txt)
fi
use_python "${requirements[@]}"
if [ $entry = engine.tools.benchmark_training ] && ! has_data "$@"; then
  data=(--data datasets/demo/VOCdevkit/VOC2012)
  draw_demo_set pond datasets/demo "$@"
fi
exec "$python" -m $entry ${data[@]+"${data[@]}"} ${arguments[@]+"${arguments[@]}"}
