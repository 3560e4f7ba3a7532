#!/usr/bin/env bash
# Write report.html of a run, a page with its numbers, curves, images and options, and summary.md.
#   bash sbin/report.sh [RUN_FOLDER] [--help]
#                              the newest run if none is given
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.report.write "$@"
