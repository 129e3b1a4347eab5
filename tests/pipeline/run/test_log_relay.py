from __future__ import annotations

import logging
import os

from pipeline.run.log_relay import relay_log


def test_what_the_data_say_is_told_once_but_not_all_and_not_from_a_forked_process() -> None:
    told: list[str] = []
    log = logging.getLogger("some_package.module")
    relay_log("some_package", lambda line: told.append("earlier"))
    relay_log("some_package", told.append)
    log.debug("not this")
    for _ in range(2):
        log.warning("corrupt sample: %s", 7)
    assert told == ["corrupt sample: 7"]
    child = os.fork()
    if not child:
        log.warning("from a loader process")
        os._exit(len(told))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    for number in range(50):
        log.warning("number %d", number)
    assert len(told) == 20
    assert told[-1] == "number 18 (what follows is in the workers' logs only)"
