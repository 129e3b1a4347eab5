"""Hosts of our own on one machine: network namespaces on a bridge, each with an SSH server, a home and a /tmp."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SUBNET = "10.213.77"
NEEDED = ("ip", "unshare", "/usr/sbin/sshd", "rsync", "ssh-keygen")
_OWN = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitUserEnvironment no
"""


def missing() -> str:
    """Say what this machine lacks for hosts of one's own; empty if nothing."""
    lacking = [tool for tool in NEEDED if not shutil.which(tool)]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: iproute2, openssh-server, rsync)"
    probe = ["ip", "netns", "exec", "crescendo-probe", *_OWN, "true"]
    made = subprocess.run(["ip", "netns", "add", "crescendo-probe"], capture_output=True, check=False)
    works = made.returncode == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", "crescendo-probe"], capture_output=True, check=False)
    return "" if works else "network namespaces can't be made here (they need root)"


class Hosts:
    """Hosts `0` (the user's laptop), `1` (head), `2`, ... with the addresses 10.213.77.(10 + number)."""

    def __init__(self, count: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="crescendo-hosts-", dir="/var/tmp"))
        self.mark = f"cr{os.getpid() % 10000}"
        self.count = count
        self._servers: list[subprocess.Popen[bytes]] = []
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")], check=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "host_key")], check=True)
        _run("ip", "netns", "add", self._space("switch"))
        _run(*self.inside("switch"), "ip", "link", "add", "bridge", "type", "bridge")
        _run(*self.inside("switch"), "ip", "link", "set", "bridge", "up")
        for number in range(count):
            self._add(number)

    def address(self, number: int) -> str:
        return f"{SUBNET}.{10 + number}"

    def home(self, number: int) -> Path:
        return self.folder / str(number) / "home"

    def _space(self, name: str | int) -> str:
        return f"{self.mark}-{name}"

    def inside(self, name: str | int) -> list[str]:
        """Return what a command begins with that runs in a host."""
        return ["ip", "netns", "exec", self._space(name)]

    def command(self, number: int, *command: str) -> list[str]:
        """Return a command in a host, with its home and /tmp. `ray stop` there ends only what it sees: its own."""
        own = self.folder / str(number)
        mounts = f'mount --bind {own}/tmp /tmp && mount --bind {own}/passwd /etc/passwd && exec "$@"'
        home = ["env", f"HOME={self.home(number)}"]
        return [*self.inside(number), *_OWN, *home, "sh", "-c", mounts, "sh", *command]

    def cut(self, number: int) -> None:
        """Pull a host's cable."""
        _run(*self.inside("switch"), "ip", "link", "set", f"port{number}", "down")

    def _add(self, number: int) -> None:
        space, home = self._space(number), self.home(number)
        (home / ".ssh").mkdir(parents=True)
        (self.folder / str(number) / "tmp").mkdir()
        # SSH looks up a home there, whatever HOME says.
        accounts = re.sub(r"(?m)^(root:[^\n]*):/root:", rf"\1:{home}:", Path("/etc/passwd").read_text())
        (self.folder / str(number) / "passwd").write_text(accounts)
        _run("ip", "netns", "add", space)
        switch = self._space("switch")
        _run("ip", "link", "add", "eth0", "netns", space, "type", "veth", "peer", f"port{number}", "netns", switch)
        _run(*self.inside("switch"), "ip", "link", "set", f"port{number}", "master", "bridge", "up")
        _run(*self.inside(number), "ip", "address", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run(*self.inside(number), "ip", "link", "set", device, "up")
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / str(number) / "sshd_config"
        config.write_text(_SSHD.format(folder=self.folder))
        with (self.folder / str(number) / "sshd.log").open("wb") as log:
            serve = self.command(number, "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
            self._servers.append(subprocess.Popen(serve, stdin=subprocess.DEVNULL, stderr=log))

    def processes(self, number: int) -> list[int]:
        """Return the ids of a host's processes."""
        found = subprocess.run(["ip", "netns", "pids", self._space(number)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def close(self) -> None:
        """End every process of the hosts, and the hosts."""
        for number in range(self.count):
            for pid in self.processes(number):
                subprocess.run(["kill", "-9", str(pid)], capture_output=True, check=False)
        for server in self._servers:
            server.wait()
        time.sleep(0.2)
        for name in (*range(self.count), "switch"):
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
