"""Start the worker: it confines itself, then answers its endpoint."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict
from pathlib import Path

from privet.client.training.worker.confine import confine
from privet.client.training.worker.pipe import Pipe
from privet.client.training.worker.pulse import BEAT, Pulse
from privet.common.flat import CHUNK
from privet.common.output.process_output import hand_over


def main() -> None:
    """Serve one plan until the endpoint closes the pipe."""
    # Anything printed goes to the trainer's log, and nothing else reads the endpoint's requests.
    pipe = Pipe(os.fdopen(os.dup(0), "rb", CHUNK), os.fdopen(os.dup(1), "wb", CHUNK))
    hand_over(2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    opening, _ = pipe.receive()
    confined = confine(map(Path, opening["closed"]), [Path(opening["work"])])
    pipe.send(asdict(confined))
    pulse = Pulse(opening["pulse"])
    threading.Thread(target=_end_with, args=(os.getppid(), pulse), daemon=True).start()

    # Not before: torch starts threads, which would keep the rights that this one has given up.
    from privet.client.training.worker.serving import serve

    serve(pipe, opening)


def _end_with(parent: int, pulse: Pulse | None = None) -> None:
    """Send heartbeats, and end this process, whatever it is doing, when its endpoint has gone."""
    while os.getppid() == parent:
        if pulse is not None:
            pulse.beat()
        time.sleep(BEAT)
    os._exit(1)


if __name__ == "__main__":
    main()
