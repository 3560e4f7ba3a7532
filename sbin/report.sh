#!/usr/bin/env bash
# Write report.html of a run: why AP is low, curves, confusions, images, options; or compare runs.
#   bash sbin/report.sh [RUN_FOLDER...] [--out HTML] [--help]
#                              the newest run if none is given; several go into comparisons/NNN
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.report.write "$@"
