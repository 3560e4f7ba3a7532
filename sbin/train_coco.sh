#!/usr/bin/env bash
# Train on COCO with the recipe `coco` of engine/recipes.py: batch 64, 270,000 iterations.
#
#   bash sbin/train_coco.sh --data DIR     a folder with annotations/ and the images
#   bash sbin/train_coco.sh --data DIR --model mobileinst_topformer_base --resume
#   GPUS=8 bash sbin/train_coco.sh --data DIR --accumulate 1      64 images on eight GPUs
#   GPUS=8 NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 bash sbin/train_coco.sh \
#     --data DIR --batch-size 4 --accumulate 1 --out DIR          the same on two machines; the
#     second has NODE_RANK=1. See setup.sh
#
# It starts from a TopFormer-base ImageNet file in datasets/weights/, or with --from-scratch.
# 64 images a step: 8 at a time, accumulated 8 times, in one process. With GPUS=N a step has N times
# as many images, unless --accumulate is divided by N.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
run_module engine.train --recipe coco "$@"
