#!/usr/bin/env bash
# Train Mask2Former on COCO json, nested masks included; evaluate it, draw its predictions.
#
#   bash sbin/train_mask2former.sh                 the demo set of shrimps and their organs
#   bash sbin/train_mask2former.sh --data DIR      VOC, or a folder with annotations/ and pictures
#   bash sbin/train_mask2former.sh --data DIR --pretrained FILE [--model mask2former_swin_small]
#                                                  a Mask2Former or Swin to start from (for a GPU)
#   bash sbin/train_mask2former.sh --data DIR --pretrained FILE --model mask2former_mobilenet_v2
#                                                  a small one that fits a CPU
#   bash sbin/train_mask2former.sh [...] --resume  the same command again, after Ctrl-C: goes on
#   GPUS=2 bash sbin/train_mask2former.sh [...]    on two GPUs, or two processes: see setup.sh
#   bash sbin/train_mask2former.sh --help          every option; what you add overrides the numbers
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt

has_data=no overfit=no pretrained=no help=no model=mask2former_swin_tiny previous=
for argument in "$@"; do
  [ "$previous" = --model ] && model=$argument
  previous=$argument
  case $argument in
    --model=*) model=${argument#--model=} ;;
    --pretrained | --pretrained=*) pretrained=yes ;;
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
    "$python" -m data.demo.organs --out datasets/organs
  fi
fi

# The published sizes (47 million parameters and more) want weights to start from, and a GPU. These
# are our settings for a CPU: two encoder and three decoder layers of width 64, and, unless weights
# for a backbone are at hand, a narrow Swin of four short stages. 30 objects per picture are enough
# for the demo set, which has up to 18.
decoders=(
  width=64 mask_dim=64 num_heads=4 num_encoder_layers=2 encoder_ffn_width=256
  num_queries=30 num_layers=3 ffn_width=256 train_points=1024 drop_path=0
)
narrow_swin=(embed_dim=32 depths=2,2,2,2 backbone_heads=1,2,4,8 window_size=4)
case $model in
  *_swin_*) small=("${decoders[@]}" "${narrow_swin[@]}") ;;
  *) small=("${decoders[@]}") ;;
esac

if [ $overfit = yes ]; then
  # Self-test: the same few pictures again and again, until they are known by heart.
  recipe=(
    --image-size 192 --batch-size 4 --iterations 300 --eval-every 75 --lr 1e-3 --average 0.998
    --set "${small[@]}"
  )
elif [ $pretrained = yes ] && [[ $model == *_swin_* ]]; then
  # The whole network at its published size, fine-tuned: a GPU's work. Short sides of 512 pixels.
  recipe=(
    --image-size 512 --scale 0.5 1.8 --amp bf16
    --batch-size 8 --epochs 50 --eval-every 5 --lr 1e-4 --backbone-factor 0.1 --average 0.999
  )
elif [ $pretrained = yes ]; then
  # A small pretrained backbone: its norms and finest layers stay, the rest of it learns slowly.
  recipe=(
    --image-size 256 --scale 0.7 1.8 --copy-paste 0.25
    --batch-size 4 --epochs 50 --eval-every 5 --lr 1e-3 --backbone-factor 0.1 --average 0.998
    --set "${small[@]}" frozen_norms=true frozen_stride=4
  )
elif [ $set_of = demo ]; then
  # 160 pictures of 320 x 240, seen at 256 x 192, organs of ten pixels among them.
  recipe=(
    --image-size 192 --canvas 192x256 --scale 0.8 1.4
    --batch-size 2 --epochs 50 --eval-every 10 --lr 1e-3 --average 0.998
    --set "${small[@]}"
  )
else
  # Hundreds of pictures, seen at 341 x 256 or so, from random values.
  recipe=(
    --image-size 256 --scale 0.7 1.8
    --batch-size 4 --epochs 100 --eval-every 10 --lr 1e-3 --average 0.998
    --set "${small[@]}"
  )
fi

start engine.train \
  --model mask2former_swin_tiny \
  ${data[@]+"${data[@]}"} \
  --schedule cosine --warmup 100 --weight-decay 0.05 --clip 1 \
  --flip 0.5 --colour 0.3 \
  --workers 2 --seed 0 \
  "${recipe[@]}" \
  "$@"
