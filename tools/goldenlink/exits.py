"""What the process answers to a shell."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    # What was asked about is not so: a bundle is rejected, a transfer has failed, a signature could not be made now.
    NEGATIVE = 1
    # The call itself is wrong: arguments, a file that cannot be read.
    USAGE = 2
    # The gateway understood and refused.
    REFUSED = 3
    # No answer, or one that says to try again later.
    UNAVAILABLE = 4


class Failure(Exception):
    """Ends the command with one sentence on standard error and an exit code."""

    def __init__(self, exit_code: Exit, message: str, document: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        # What `--json` prints: the gateway's problem details, where there are any.
        self.document = document or {"error": message}
