#!/usr/bin/env bash
# Draw image / ground truth / prediction, a column for each image.
#   bash sbin/visualize.sh [--checkpoint FILE] [--split train|val] [--count N] [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.visualize "$@"
