"""The last rank raises while the others wait for it."""

import gtopk

gtopk.init()
gtopk.barrier()
if gtopk.rank() == gtopk.size() - 1:
    raise ValueError("only here")
gtopk.barrier()
