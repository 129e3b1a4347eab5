"""The local stack of servers: `python -m jobs.stack up|down|status`, and `run COMMAND...` with its environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from infra.devstack.stack import BUCKET, Stack
from jobs.common.cli import run_main
from jobs.common.parsing import UsageError

USAGE = """usage: python -m jobs.stack VERB

  up               start the S3 server, the MLflow server and a Ray head with its dashboard, all on loopback;
                   and Prometheus, where it is installed
  down             stop them; the data stays in .stack/
  status           print their addresses and whether they are running
  run COMMAND...   run a command with their addresses and keys in its environment

In a shell of your own: set -a; . .stack/env; set +a"""


def main(argv: Sequence[str]) -> int:
    """Do what the verb says. Exit code of `status`: 1 if one of them doesn't run."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    verb, *rest = argv
    stack = Stack()
    if verb == "run" and rest:
        os.execvpe(rest[0], rest, os.environ | stack.environment())
    if rest or verb not in ("up", "down", "status"):
        raise UsageError(f"jobs.stack {' '.join(argv)}: expected up, down, status or run COMMAND...")
    if verb == "up":
        stack.up()
    if verb == "down":
        stack.down()
        print("the local stack is down; its data stays in .stack/")
        return 0
    return show(stack)


def show(stack: Stack) -> int:
    """Print where the servers are. Returns 1 if one of them doesn't run."""
    all_run = True
    for name, server in stack.servers().items():
        process = server.process()
        all_run &= process is not None
        state = f"process {process.pid}" if process else f"not running; see {server.folder}/server.log"
        print(f"{name:8} {server.url:28} {state}")
    print(f"bucket   s3://{BUCKET}")
    print(f"Ray dashboard's token: cat {stack.token_file}")
    return 0 if all_run else 1


if __name__ == "__main__":
    run_main(main)
