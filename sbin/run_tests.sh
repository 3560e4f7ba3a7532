#!/usr/bin/env bash
# Set up what the tests need and run them; arguments go to pytest.
#   bash sbin/run_tests.sh [-k NAME] [tests/mobileinst]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt requirements-dev.txt
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
