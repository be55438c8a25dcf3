"""`python -m tools.verify BUNDLE TRUST [--state S] [--json]`.

Exit code 0: accepted. 1: rejected. 2: the call itself is wrong (arguments, a file that cannot be read).
"""

import argparse
import json
import os
import sys

from tools.verify import MAX_FILE_BYTES, STATES, Report, verify_bundle


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.verify", description="Verify a golden link's bundle.")
    parser.add_argument("bundle", metavar="BUNDLE", help="a goldenlink.bundle.v1 file")
    parser.add_argument("trust", metavar="TRUST", help="a goldenlink.trust.v1 file")
    parser.add_argument("--state", choices=STATES, help="how far the link must have come, if it need not be closed")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        bundle, trust = _read(options.bundle), _read(options.trust)
    except (OSError, ValueError) as error:
        parser.error(f"cannot read: {str(error)!a}")
    report = verify_bundle(bundle, trust, options.state)
    text = json.dumps(report.as_json(), indent=2) if options.json else _as_text(report)
    # Any terminal will do: where it has no tick, it shows an escape.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # The reader has gone; the exit code still answers. Python's own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if report.accepted else 1


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _as_text(report: Report) -> str:
    verdict = "accepted" if report.accepted else "REJECTED"
    lines = [f"golden link {report.link_id or '(unknown)'}: {verdict}"]
    lines += [f"{c.number:>3} {'✓' if c.ok else '✗'} {c.name:<11} {c.detail}" for c in report.checks]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
