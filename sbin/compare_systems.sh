#!/usr/bin/env bash
# MobileInst, SparseInst and Mask2Former beside each other: the same backbone weights, data and CPU
# minutes of training; AP, recall of neighbours, what the mask grid costs, times and sizes in a table.
#
#   bash sbin/compare_systems.sh                the built-in demo set
#   bash sbin/compare_systems.sh --data DIR [--cpu-minutes 20] [--backbone mobilenet_v2 --pretrained FILE]
#   bash sbin/compare_systems.sh [...] --out DIR --resume     the same command again: goes on
#   bash sbin/compare_systems.sh --help         these options; all others go to the trainings
#
# The table is systems.md in the folder, which also holds a run folder for each system. The time of
# an exported model needs what requirements-export.txt lists, and is left out without.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

recipe=small data=()
if ! has_data "$@"; then
  recipe=demo data=(--data datasets/demo/VOCdevkit/VOC2012)
  draw_demo_set pond datasets/demo "$@"
fi
exec "$python" -m engine.tools.compare_systems --recipe $recipe ${data[@]+"${data[@]}"} "$@"
