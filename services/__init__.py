"""The services of the suite, one package each, over `runtime` and `core`."""

import os

# gRPC's C core writes lines of its own to standard error, where only our JSON lines belong. It reads this when it is
# imported, so no later place will do.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
