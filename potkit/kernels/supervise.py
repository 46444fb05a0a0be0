"""Runs compilers for `potkit.kernels.build`, so that none of them outlives the process that asked.

A compiler's driver starts further processes, and none of them notices when potkit is killed: they
would keep the machine busy for another minute. This process leads a group to which all of them
belong. Ten times a second it looks whether its parent is still there. If not, it ends the group
and removes the folder in which they work; SIGTERM has the same effect.

Run as a script, with the standard library alone: ``python -I -S supervise.py JOB``, where JOB is
JSON: ``parent`` (a process id), ``folder``, ``commands`` (lists of words) and ``workers``, the
number of commands that run at once. Ends with 0 if all commands did, else with 1 as soon as one
fails. What the compilers say goes to its own output.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time


class Stopped(Exception):
    """The parent is gone, or somebody asked for the end."""


def _stop(number, frame):
    raise Stopped


def run(commands, workers, parent):
    """Whether all ``commands`` ended well; the first that does not ends the wait for the others."""
    waiting = list(commands)
    running = []
    while waiting or running:
        while waiting and len(running) < workers:
            command = waiting.pop(0)
            try:
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            except OSError as error:
                print(f"error: {command[0]}: {error.strerror}", flush=True)
                return False
        for process in list(running):
            code = process.poll()
            if code is None:
                continue
            if code:
                name = process.args[0]
                print(f"{name} ended with code {code}", flush=True)
                return False
            running.remove(process)
        if os.getppid() != parent:
            raise Stopped
        time.sleep(0.1)
    return True


def main():
    """Run the commands of the JOB that the command line holds, and end with 0 or 1."""
    job = json.loads(sys.argv[1])
    if os.getpgrp() != os.getpid():
        sys.exit("error: the group would be ended with all who are in it: start a session for it")
    signal.signal(signal.SIGTERM, _stop)
    code = 1
    try:
        code = 0 if run(job["commands"], job["workers"], job["parent"]) else 1
    except Stopped:
        pass
    finally:
        # not SIG_IGN, which compilers started in this moment would inherit
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        os.killpg(os.getpgrp(), signal.SIGTERM)  # compilers that still run; this process stays
        if os.getppid() != job["parent"]:
            time.sleep(0.2)  # a compiler that is still dying writes into the folder
            shutil.rmtree(job["folder"], ignore_errors=True)
            os.killpg(os.getpgrp(), signal.SIGKILL)
    sys.exit(code)


if __name__ == "__main__":
    main()
