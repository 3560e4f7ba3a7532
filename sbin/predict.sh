#!/usr/bin/env bash
# Segment your own images: overlays, instance-id PNGs, a COCO json, a table; with --save also sets for
# annotation tools, to be corrected: labelme, cvat, label-studio, yolo, masks.
#   bash sbin/predict.sh IMAGE_OR_FOLDER... [--checkpoint FILE] [--out DIR] [--help]
#                              results go into a new folder predictions/NNN
#   bash sbin/predict.sh IMAGES --tiles 2             large images in overlapping windows
#   bash sbin/predict.sh IMAGES --save cutouts        a transparent PNG of each object
#   bash sbin/predict.sh IMAGES --shard 1/8 --out DIR     one of eight jobs; at the end:
#   bash sbin/predict.sh --merge --out DIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.predict "$@"
