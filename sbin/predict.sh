#!/usr/bin/env bash
# Segment your own images: overlays, instance-id PNGs, a COCO json, a table; with --save also sets for
# annotation tools, to be corrected: labelme, cvat, label-studio, yolo, masks.
#   bash sbin/predict.sh IMAGE_OR_FOLDER... [--checkpoint FILE] [--out DIR] [--help]
#                              results go into a new folder predictions/NNN
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.predict "$@"
