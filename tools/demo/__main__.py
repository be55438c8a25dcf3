"""`python -m tools.demo`: start the stack, tell the story, end everything."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tools.demo.chain import DevelopmentChain
from tools.demo.failure import DemoFailed
from tools.demo.story import Story
from tools.goldenlink.client import Client
from tools.goldenlink.exits import Failure
from tools.goldenlink.output import console, errors
from tools.stack.options import StackOptions
from tools.stack.processes import StackError
from tools.stack.stack import Stack

# Relative, so that what is printed can be typed.
OUTPUT = Path("build") / "demo"


async def main() -> None:
    started = time.monotonic()
    console.print("starting the suite: PostgreSQL, Redis, three HSM tokens, a chain, three nodes, seven services")
    async with Stack(Path("build") / "demo-stack", StackOptions(supervised=True)) as stack:
        console.print(f"all serve after {time.monotonic() - started:.1f} s")
        token = stack.api_token_file("operator").read_text(encoding="utf-8").strip()
        client = Client(stack.gateway_url, token)
        assert stack.foundation.chain_url is not None
        story = Story(client, DevelopmentChain(stack.foundation.chain_url), stack.record, OUTPUT)
        await asyncio.to_thread(story.tell)
    console.print(f"everything has ended; {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (DemoFailed, Failure, StackError) as error:
        errors.print(str(error), style="red", markup=False)
        sys.exit(1)
