#!/usr/bin/env bash
# Train Mask2Former on COCO json, nested masks included; evaluate it, draw its predictions.
#
#   bash sbin/train_mask2former.sh                 the demo set of shrimps and their organs
#   bash sbin/train_mask2former.sh --data DIR      VOC, or a folder with annotations/ and images
#   bash sbin/train_mask2former.sh --data DIR --pretrained FILE [--model mask2former_swin_small]
#                                                  a Mask2Former or Swin to start from (for a GPU)
#   bash sbin/train_mask2former.sh --data DIR --pretrained FILE --model mask2former_mobilenet_v2
#                                                  a small one that fits a CPU
#   bash sbin/train_mask2former.sh [...] --resume  the same command again, after Ctrl-C: goes on
#   GPUS=2 bash sbin/train_mask2former.sh [...]    on two GPUs, or two processes: see setup.sh
#   bash sbin/train_mask2former.sh --help          every option; what you add overrides the recipe
#
# The model and all numbers are those of a recipe in engine/recipes.py: `mask2former-small`, or
# `mask2former-demo` for the demo set; --pretrained and --overfit choose their variants.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

recipe=mask2former-small data=()
if ! has_data "$@"; then
  recipe=mask2former-demo data=(--data datasets/organs)
  draw_demo_set organs datasets/organs "$@"
fi
run_module engine.train --recipe $recipe ${data[@]+"${data[@]}"} "$@"
