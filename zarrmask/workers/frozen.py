"""Imported last by the process that workers are forked from: what was imported stays shared.

The garbage collector writes to every object that it looks at, and a page that a fork writes to is
its own from then on; https://docs.python.org/3/library/gc.html#gc.freeze
"""

import gc

gc.collect()
gc.freeze()
