#!/usr/bin/env bash
# Train MobileInst on VOC, evaluate it, draw its predictions.
#
#   bash sbin/train_voc.sh                 VOC under datasets/, or else the built-in demo set
#   bash sbin/train_voc.sh --data DIR      a folder with VOCdevkit/VOC2012, or VOC2012 itself
#   bash sbin/train_voc.sh --data DIR --model mobileinst_mobilenet_v2 --pretrained FILE
#   bash sbin/train_voc.sh [...] --resume  the same command again, after Ctrl-C or a crash: goes on
#   GPUS=2 bash sbin/train_voc.sh [...]   on two GPUs, or in two processes on a CPU: see setup.sh
#   bash sbin/train_voc.sh --help          every option; what you add overrides the numbers below
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

has_data=no overfit=no pretrained=no help=no
for argument in "$@"; do
  case $argument in
    --data | --data=* | --train-json | --train-json=*) has_data=yes ;;
    --overfit | --overfit=*) overfit=yes ;;
    --pretrained | --pretrained=*) pretrained=yes ;;
    -h | --help) help=yes ;;
  esac
done
data=() set_of=voc
if [ $has_data = no ]; then
  for place in datasets datasets/VOC; do
    if [ -d "$place/VOCdevkit/VOC2012" ]; then data=(--data "$place/VOCdevkit/VOC2012"); fi
  done
  if [ ${#data[@]} -eq 0 ]; then
    set_of=demo
    data=(--data datasets/demo/VOCdevkit/VOC2012)
    if [ $help = no ]; then
      echo "no VOC under datasets/ and no --data DIR: training on the built-in demo set"
      "$python" -m data.demo.pond --out datasets/demo
    fi
  fi
fi

# What the recipes share. The paper's decoder (128 wide, keys at stride 64, a plain local decoder,
# no semantic term) is the model's default; these are our settings for small sets: narrower, finer
# keys, the local decoder guided by the first masks, and a class for every cell as an additional
# lesson while training.
small=(width=64 kernel_dim=64 kv_stride=16 guided=true semantic_weight=1 drop_path=0)

if [ $overfit = yes ]; then
  # Self-test: the same few pictures again and again, until they are known by heart. What the small
  # set needs for recognising classes in other pictures only takes time here.
  recipe=(
    --batch-size 4 --iterations 240 --eval-every 60 --lr 1e-3 --average 0.998
    --set "${small[@]}" num_queries=50 semantic_weight=0
  )
elif [ $set_of = demo ]; then
  # 240 pictures of 320 x 240, seen at 171 x 128; two CPU cores, under 15 minutes in all.
  recipe=(
    --image-size 128 --canvas 128x192 --scale 0.8 1.4
    --batch-size 8 --epochs 50 --eval-every 25 --lr 2e-3 --average 0.998
    --set "${small[@]}" num_queries=25
  )
elif [ $pretrained = yes ]; then
  # Hundreds to thousands of pictures, seen at 341 x 256 or so, by a backbone that knows pictures:
  # its norms and its finest layers stay as they are, the rest of it learns slowly.
  recipe=(
    --image-size 256 --scale 0.7 1.8 --copy-paste 0.25
    --batch-size 8 --epochs 24 --eval-every 4 --lr 1e-3 --backbone-factor 0.1 --average 0.998
    --set "${small[@]}" num_queries=50 frozen_norms=true frozen_stride=4
  )
else
  # The same from random values: many more passes, small pictures (171 x 128) and small batches
  # buy more steps for the same time. See assets/results for what was tried.
  recipe=(
    --image-size 128 --scale 0.7 1.8 --copy-paste 0.25
    --batch-size 4 --epochs 110 --eval-every 10 --lr 1.4e-3 --average 0.999
    --set "${small[@]}" num_queries=50
  )
fi

start engine.train \
  --model mobileinst_topformer_tiny \
  ${data[@]+"${data[@]}"} \
  --schedule cosine --warmup 100 --weight-decay 0.05 --clip 1 \
  --flip 0.5 --colour 0.3 \
  --workers 2 --seed 0 \
  "${recipe[@]}" \
  "$@"
