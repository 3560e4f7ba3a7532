#!/usr/bin/env bash
# The COCO recipe: batch 64, 270,000 iterations (about 146 passes over train2017).
#
#   bash sbin/train_coco.sh --data DIR     a folder with annotations/ and the pictures
#   bash sbin/train_coco.sh --data DIR --model mobileinst_topformer_base --resume
#   GPUS=8 bash sbin/train_coco.sh --data DIR --accumulate 1      64 pictures on eight GPUs
#   GPUS=8 NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 bash sbin/train_coco.sh \
#     --data DIR --batch-size 4 --accumulate 1 --out DIR          the same on two machines; the
#     second has NODE_RANK=1. See setup.sh
#
# What is known: the paper reports 31.2 mask AP on test-dev (TopFormer, 640; AAAI 2024); one
# third-party reproduction reached 27.2 on val2017 with TopFormer-B and pretrained weights.
# This recipe has NOT been run whole here: it was tried for a few iterations on a small part of
# COCO. Its numbers follow SparseInst's published training, which the paper is read as following;
# the paper's own implementation paragraph was not at hand.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

# 64 pictures a step: 8 at a time, accumulated 8 times. On a larger card give --batch-size 64
# --accumulate 1; up to BatchNorm it is the same computation. Both are those of one process: with
# GPUS=N a step has N times as many pictures, unless --accumulate is divided by N.
start engine.train \
  --model mobileinst_topformer_base \
  --image-size 640 --canvas 448x640 512x704 576x768 640x896 640x448 704x512 768x576 896x640 \
  --scale 0.7 2.0 --flip 0.5 --colour 0.0 \
  --batch-size 8 --accumulate 8 \
  --iterations 270000 --schedule multistep --drops 210000 250000 --warmup 1000 \
  --lr 5e-5 --backbone-factor 0.5 --weight-decay 0.05 --clip 0 --average 0.9998 \
  --set num_queries=100 kv_stride=64 pixel_weight=5 \
  --eval-every 5 --log-every 50 --workers 8 --seed 0 \
  "$@"
