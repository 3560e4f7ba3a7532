#!/usr/bin/env bash
# Repeat a training of a small model and compare all metrics and weights bit by bit: three runs
# without loader processes, one with two, one with parts inherited from the standard ones.
#
#   bash sbin/reproduce.sh                    the demo set of shrimps and their organs
#   bash sbin/reproduce.sh --data DIR [...]   your own data; added options override the recipe
#   bash sbin/reproduce.sh --runs 5 --workers 4 --seed 7 --out DIR
#   bash sbin/reproduce.sh --help             these options; all others go to the training
# The recipe `reproduce` of engine/recipes.py is a small Mask2Former on a CPU; --device cuda shows
# what a GPU does. Another model: python -m engine.tools.reproduce --model NAME ...
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

data=()
if ! has_data "$@"; then
  data=(--data datasets/organs)
  draw_demo_set organs datasets/organs "$@"
fi
exec "$python" -m engine.tools.reproduce --recipe reproduce ${data[@]+"${data[@]}"} "$@"
