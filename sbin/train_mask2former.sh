#!/usr/bin/env bash
# Train Mask2Former on COCO json, nested masks included; evaluate it, draw its predictions.
#
#   bash sbin/train_mask2former.sh                 the demo set of shrimps and their organs
#   bash sbin/train_mask2former.sh --data DIR      a folder with annotations/ and the pictures
#   bash sbin/train_mask2former.sh [...] --resume  the same command again, after Ctrl-C: goes on
#   GPUS=2 bash sbin/train_mask2former.sh [...]    on two GPUs, or two processes: see setup.sh
#   bash sbin/train_mask2former.sh --help          every option; what you add overrides the numbers
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

has_data=no overfit=no help=no
for argument in "$@"; do
  case $argument in
    --data | --data=* | --train-json | --train-json=*) has_data=yes ;;
    --overfit | --overfit=*) overfit=yes ;;
    -h | --help) help=yes ;;
  esac
done
data=() set_of=own
if [ $has_data = no ]; then
  set_of=demo
  data=(--data datasets/organs)
  if [ $help = no ]; then
    echo "no --data DIR: training on the demo set of shrimps and their organs"
    "$python" -m data.demo_organs --out datasets/organs
  fi
fi

# The published sizes (47 million parameters) want weights to start from, and a GPU. These are our
# settings for learning from a few hundred pictures alone, on a CPU: a narrow Swin of four short
# stages, two encoder and three decoder layers. A picture holds up to 18 objects of the demo set.
small=(
  embed=32 depths=2,2,2,2 backbone_heads=1,2,4,8 window=4 drop_path=0
  width=64 mask_dim=64 heads=4 encoder_layers=2 encoder_ffn_width=256
  queries=30 layers=3 ffn_width=256 train_points=1024
)

if [ $overfit = yes ]; then
  # Self-test: the same few pictures again and again, until they are known by heart.
  recipe=(--image-size 192 --batch-size 4 --iterations 300 --eval-every 75 --lr 1e-3)
elif [ $set_of = demo ]; then
  # 160 pictures of 320 x 240, seen at 256 x 192, organs of ten pixels among them.
  recipe=(
    --image-size 192 --canvas 192x256 --scale 0.8 1.4
    --batch-size 8 --epochs 50 --eval-every 25 --lr 1e-3
  )
else
  # Hundreds of pictures, seen at 341 x 256 or so. On a GPU rather the published sizes, larger
  # pictures, and more of them: python -m engine.train --model mask2former_swin_tiny --data DIR
  recipe=(
    --image-size 256 --scale 0.7 1.8
    --batch-size 8 --epochs 40 --eval-every 5 --lr 1e-3
  )
fi

start engine.train \
  --model mask2former_swin_tiny \
  ${data[@]+"${data[@]}"} \
  --schedule cosine --warmup 100 --weight-decay 0.05 --clip 1 --average 0.998 \
  --flip 0.5 --colour 0.3 \
  --workers 2 --seed 0 \
  --set "${small[@]}" \
  "${recipe[@]}" \
  "$@"
