"""Workers of a cluster that is this process: tasks run when their result is asked for, one after the other."""

import contextlib
import types

from edgeclf.host.ray_workers import Setting


class Here:
    """As `host.ray_workers.Workers`, without Ray."""

    slots = 2
    ray = types.SimpleNamespace(wait=lambda references, timeout: (references[:1], references[1:]))

    def task(self, function):
        return types.SimpleNamespace(remote=lambda *given: (function, given))

    def setting(self):
        return Setting(".", ("edgeclf",), 1)

    def result(self, reference, what):
        function, given = reference
        return function(*given)

    def cancelling(self, references):
        return contextlib.nullcontext()
