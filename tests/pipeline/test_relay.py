from __future__ import annotations

import logging
import os

from pipeline.relay import relay_warnings


def test_warnings_of_the_data_are_told_but_not_all_and_not_from_a_forked_process() -> None:
    told: list[str] = []
    log = logging.getLogger("some_package.module")
    relay_warnings("some_package", lambda line: told.append("earlier"))
    relay_warnings("some_package", told.append)
    log.info("not this")
    log.warning("damaged sample: %s", 7)
    assert told == ["damaged sample: 7"]
    child = os.fork()
    if not child:
        log.warning("from a loader process")
        os._exit(len(told))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    for number in range(50):
        log.warning("number %d", number)
    assert len(told) == 20
    assert told[-1] == "number 18 (what follows is in the workers' logs only)"
