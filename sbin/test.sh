#!/usr/bin/env bash
# Evaluate a checkpoint: the 12 COCO numbers, the per-category table, a results json.
#   bash sbin/test.sh [--checkpoint FILE] [--split train|val] [--metrics-block] [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.evaluate "$@"
