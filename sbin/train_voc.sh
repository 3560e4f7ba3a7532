#!/usr/bin/env bash
# Train MobileInst on VOC, or on the built-in demo set; evaluate it, draw its predictions.
#
#   bash sbin/train_voc.sh                 VOC under datasets/, or else the built-in demo set
#   bash sbin/train_voc.sh --data DIR      a folder with VOCdevkit/VOC2012, or VOC2012 itself: the
#                                          same as sbin/train.sh, whose other options it has too
#   bash sbin/train_voc.sh [...] --resume  the same command again, after Ctrl-C or a crash: goes on
#   GPUS=2 bash sbin/train_voc.sh [...]    on two GPUs, or in two processes on a CPU: see setup.sh
#   bash sbin/train_voc.sh --help          every option; what you add overrides the recipe
#
# The demo set has a recipe of its own, `demo`, with variants with weights or for --overfit.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

data=()
if ! has_data "$@"; then
  for place in datasets datasets/VOC; do
    if [ -d "$place/VOCdevkit/VOC2012" ]; then data=(--data "$place/VOCdevkit/VOC2012"); fi
  done
  if [ ${#data[@]} -eq 0 ]; then
    use_python requirements.txt
    data=(--recipe demo --data datasets/demo/VOCdevkit/VOC2012)
    draw_demo_set pond datasets/demo "$@"
  fi
fi
exec bash sbin/train.sh ${data[@]+"${data[@]}"} "$@"
