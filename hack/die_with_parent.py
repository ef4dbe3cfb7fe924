"""Run a program that the kernel kills when the process that asked for it is gone.

Started as ``python die_with_parent.py PARENT_PID PROGRAM ARGUMENT...``; replaces itself with the
program. A wrapper and not a function run between fork and exec, since that is unsafe in a process
that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the request was made; then nothing would kill us.
        if os.getppid() != parent:
            sys.exit(f"{command[0]}: the process that started it is gone")
    os.execv(command[0], command)


main()
