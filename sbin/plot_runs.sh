#!/usr/bin/env bash
# Draw the loss, validation AP and train AP of runs over time (matplotlib, of requirements-dev.txt).
#   bash sbin/plot_runs.sh [RUN_FOLDER...] [--out PNG] [--help]
#                              the figure goes into a new folder curves/NNN
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt requirements-dev.txt
exec "$python" -m engine.report.curves "$@"
