"""Opens a token once, as its service will.

    python -m tools.stack.token_opening LIBRARY LABEL PIN_FILE

Exit 1 with one line that says why it cannot be opened.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.core.errors import WalletError
from services.runtime.settings import TokenSettings
from services.runtime.token import TokenSession


def main(library: str, label: str, pin_file: str) -> None:
    settings = TokenSettings(pkcs11_library=Path(library), token_label=label, token_pin_file=Path(pin_file))
    session = TokenSession(settings)
    try:
        session.open()
        session.close()
    except WalletError as error:
        sys.exit(f"{error.message} ({error.details.get('cause', error.reason.name)})")


if __name__ == "__main__":
    main(*sys.argv[1:])
