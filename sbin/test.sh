#!/usr/bin/env bash
# Evaluate a checkpoint: the 12 COCO numbers, the per-category table, a results json.
#   bash sbin/test.sh [--checkpoint FILE] [--split train|val] [--metrics-block] [--out JSON] [--help]
#                                    results go into a new folder test-NNN beside the checkpoint
#   bash sbin/test.sh --diagnose     why objects are missed: recall by any mask, merged neighbours, AP
#                                    with right classes, scores or masks; also diagnose.json
#   GPUS=2 bash sbin/test.sh [...]   shared by two processes; the numbers are the same
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
run_module engine.evaluate "$@"
