# SPDX-License-Identifier: GPL-2.0-only
"""The helper process of kdamon.mm.inject.requests, which sends itself a signal when it asks ptrace for the n-th time.

n, the signal, a signal for the traced process before that (each 0 for none), the helper's path and, if the process is
to be frozen before all that, the directory of its control group are in a file beside this one; the arguments are the
helper's.
"""

import importlib.util
import itertools
import os
from pathlib import Path

before, number, first, path, *group = Path(__file__).with_suffix(".order").read_text().split()
specification = importlib.util.spec_from_file_location("inject_helper", path)
helper = importlib.util.module_from_spec(specification)
specification.loader.exec_module(helper)
asked = itertools.count()
ask = helper._Tracee.request


def request(self, *arguments):
    if next(asked) == int(before):
        for directory in group:
            Path(directory, "cgroup.freeze").write_text("1")
        os.kill(self.tid, int(first))
        os.kill(os.getpid(), int(number))
    return ask(self, *arguments)


helper._Tracee.request = request
helper.main()
