"""Imported by the process that workers are forked from: it imports what they need, and keeps it.

The garbage collector writes to every object that it looks at, and a page that a fork writes to is
its own from then on; https://docs.python.org/3/library/gc.html#gc.freeze
"""

import gc
import os
from contextlib import suppress
from importlib import import_module

WANTED = "ZARRMASK_IMPORTS"
"""The variable that names the modules; there is none in any other process."""

if WANTED in os.environ:
    for name in os.environ[WANTED].split():
        with suppress(Exception):  # workers try it again, and say what is wrong
            import_module(name)
    gc.collect()
    gc.freeze()
