#!/usr/bin/env bash
# Train the same small model again and again; are all metrics and weights the same, bit by bit?
# Three runs without loader processes, one with two, one with parts inherited from the standard ones.
#
#   bash sbin/reproduce.sh                    the demo set of shrimps and their organs
#   bash sbin/reproduce.sh --data DIR [...]   a set of your own; what you add overrides the numbers
#   bash sbin/reproduce.sh --runs 5 --workers 4 --seed 7 --out DIR
#   bash sbin/reproduce.sh --help             these options; all others are those of the training
# The sizes are those of a small Mask2Former. Another model: python -m engine.tools.reproduce --model NAME ...
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
if [ $has_data = no ]; then
  data=(--data datasets/organs)
  if [ $help = no ]; then "$python" -m data.demo.organs --out datasets/organs; fi
fi

# A few minutes each on one CPU core, after which a model finds something: mask AP 0.07 or so. Bits
# are promised on a CPU; --device cuda tells what a GPU does.
exec "$python" -m engine.tools.reproduce \
  --model mask2former_swin_tiny \
  ${data[@]+"${data[@]}"} \
  --device cpu --threads 1 \
  --image-size 128 --canvas 128x192 --scale 0.8 1.4 \
  --batch-size 2 --epochs 10 --eval-every 0 --lr 1e-3 --warmup 40 --average 0.98 \
  --set embed_dim=32 depths=2,2,2,2 backbone_heads=1,2,4,8 window_size=4 drop_path=0.1 \
  width=64 mask_dim=64 num_heads=4 num_encoder_layers=2 encoder_ffn_width=256 \
  num_queries=30 num_layers=3 ffn_width=256 train_points=1024 \
  "$@"
