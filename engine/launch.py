"""Entry: torchrun, with one sentence and the right exit code at its end.

    python -m engine.launch --standalone --nproc-per-node 2 -m engine.train [its options]

Takes the options of torchrun. When a process fails, torchrun ends the others, reports at length and
exits with 1 whatever happened. Here the reports are left out, what the failed process said remains
the last word, or is added where it could say nothing, and its exit code is the code of the job.
"""

import logging
import sys

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from engine import dist

REPORTED_CODES = (2, 3, 130, 143)  # exit codes of processes that told why
RESUME = "the last checkpoint is whole: the same command with --resume goes on from it"


def first_failure(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure of the process that was the cause, and not a consequence."""
    causes = [rank for rank in failures if failures[rank].exitcode != dist.EXIT_RANK_LOST]
    rank = min(causes or failures, key=lambda rank: failures[rank].timestamp)
    return rank, failures[rank]


def ending(rank: int, failure: ProcessFailure) -> tuple[int, str]:
    """Exit code of the job, and what is left to say of the process that failed."""
    code = failure.exitcode
    if code in REPORTED_CODES:
        return code, ""
    if code == dist.EXIT_RANK_LOST:
        return code, f"error: a process on another machine ended first, and says why; {RESUME}"
    if code > 0:
        return code, f"error: process {rank} failed, as said above (exit code {code}); {RESUME}"
    why = ", as the system does when memory runs out" if -code == 9 else ""
    return 128 - code, f"error: process {rank} was killed ({failure.signal_name()}{why}); {RESUME}"


def main(argv: list[str]) -> int:
    logging.disable(logging.ERROR)
    try:
        torchrun.run(torchrun.parse_args(argv))
    except ChildFailedError as error:
        code, sentence = ending(*first_failure(error.failures))
    except SignalException as error:  # it was passed on, and the processes saved and left
        code, sentence = 128 + error.sigval, ""
    else:
        return 0
    if sentence:
        print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
