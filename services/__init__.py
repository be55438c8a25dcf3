"""The services of the suite, one package each, over `runtime` and `core`."""

import os

# gRPC's C core reads both when it is imported, so no later place will do. It writes lines of its own to standard error,
# where only our JSON lines belong. And its handlers run in every child between fork and exec, beside the threads that
# are calling into it, where they have been seen to abort the child; whatever we fork from such a process, we exec.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
