#!/usr/bin/env bash
# Convert a data set into another annotation format; the input is only read.
#   bash sbin/convert.sh IN OUT --to coco|yolo|labelme|cvat|masks|ids|label-studio [--no-images]
#                               [--strict] [--format NAME] [--crowd-as-instances] [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.convert "$@"
