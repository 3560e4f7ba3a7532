#!/usr/bin/env bash
# Draw image / ground truth / prediction, a column for each image.
#   bash sbin/visualize.sh [--checkpoint FILE] [--split train|val] [--count N] [--help]
#                              the image goes into a new folder visualize-NNN beside the checkpoint
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.visualize "$@"
