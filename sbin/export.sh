#!/usr/bin/env bash
# Export a checkpoint to ONNX (and ExecuTorch) for a phone, a browser or a server; each file is
# compared with the checkpoint on real images, and one that gives other masks or scores is refused.
#   bash sbin/export.sh [--checkpoint FILE] [--format onnx,onnx-plain,pte] [--size HxW] [--help]
#                          [--fp16] [--int8] [--web]
#                                    files and how to use them go into exports/RUN-HxW
#   bash sbin/predict.sh IMAGES --checkpoint exports/RUN-HxW/model.onnx
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt requirements-export.txt
exec "$python" -m engine.export "$@"
