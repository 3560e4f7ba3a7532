#!/usr/bin/env bash
# Train MobileInst on VOC, evaluate it, draw its predictions.
#
#   bash sbin/train_voc.sh                 VOC under datasets/, or else the built-in demo set
#   bash sbin/train_voc.sh --data DIR      a folder with VOCdevkit/VOC2012, or VOC2012 itself
#   bash sbin/train_voc.sh --resume        go on with the newest run after Ctrl-C or a crash
#   bash sbin/train_voc.sh --help          every option; what you add overrides the numbers below
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

has_data=no help=no
for argument in "$@"; do
  case $argument in
    --data | --data=* | --train-json | --train-json=*) has_data=yes ;;
    -h | --help) help=yes ;;
  esac
done
data=()
set_of=voc
if [ $has_data = no ]; then
  for place in datasets datasets/VOC; do
    if [ -d "$place/VOCdevkit/VOC2012" ]; then data=(--data "$place/VOCdevkit/VOC2012"); fi
  done
  if [ ${#data[@]} -eq 0 ]; then
    set_of=demo
    data=(--data datasets/demo/VOCdevkit/VOC2012)
    if [ $help = no ]; then
      echo "no VOC under datasets/ and no --data DIR: training on the built-in demo set"
      "$python" -m data.demo --out datasets/demo
    fi
  fi
fi

if [ $set_of = demo ]; then
  # 240 pictures of 320 x 240, on two CPU cores in under 15 minutes.
  recipe=(
    --image-size 240 --canvas 256x320
    --epochs 40 --eval-every 10
    --set width=64 kernel_dim=64 queries=40 kv_stride=16 drop_path=0
  )
else
  recipe=(
    --image-size 320
    --epochs 40 --eval-every 10
    --set width=64 kernel_dim=64 queries=50 kv_stride=16
  )
fi

exec "$python" -m engine.train \
  --model mobileinst_topformer_tiny \
  "${data[@]}" \
  "${recipe[@]}" \
  --batch-size 8 \
  --lr 1e-3 --weight-decay 0.05 --warmup 100 --schedule cosine --clip 1 --average 0.998 \
  --scale 0.7 2.0 --flip 0.5 --colour 0.3 \
  --seed 0 \
  "$@"
