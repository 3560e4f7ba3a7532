"""Entry: torchrun, with the message and exit code of the rank that failed first.

python -m engine.launch --standalone --nproc-per-node 2 -m engine.train [its options]
"""

import logging
import sys

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from engine import dist

REPORTED_CODES = (2, 3, 130, 143)  # exit codes of ranks that printed the reason themselves
RESUME = "the last checkpoint is complete: the same command with --resume continues from it"


def exit_status(failures: dict[int, ProcessFailure]) -> tuple[int, str]:
    """Exit code of the job, and a message if the rank that failed first printed none."""
    causes = [rank for rank in failures if failures[rank].exitcode != dist.EXIT_RANK_LOST]
    rank = min(causes or failures, key=lambda rank: failures[rank].timestamp)
    code = failures[rank].exitcode
    if code in REPORTED_CODES:
        return code, ""
    if code == dist.EXIT_RANK_LOST:
        return code, "error: a rank on another machine failed first, see its output"
    if code > 0:
        return code, f"error: rank {rank} failed, see above (exit code {code})"
    why = failures[rank].signal_name()
    if why == "SIGKILL":
        why += ", as the system does when memory runs out"
    return 128 - code, f"error: rank {rank} was killed ({why})"


def main(argv: list[str]) -> int:
    logging.disable(logging.ERROR)
    try:
        torchrun.run(torchrun.parse_args(argv))
    except ChildFailedError as error:
        code, sentence = exit_status(error.failures)
    except SignalException as error:  # passed on to the ranks, which have saved and ended
        code, sentence = 128 + error.sigval, ""
    else:
        return 0
    if sentence and "engine.evaluate" not in argv:  # a training, maybe of a script of the user
        sentence += f"; {RESUME}"
    if sentence:
        print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
