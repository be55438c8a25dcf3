"""The stock Jaeger collector, as far as it serves sampling strategies from a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tools.jaeger import jaeger
from tools.stack.ports import Ports
from tools.stack.processes import ProcessSpec
from tools.stack.readiness import serves_http


class SamplingCollector:
    def __init__(self, directory: Path, ports: Ports, reload_interval: str) -> None:
        """Raises tools.jaeger.JaegerMissing."""
        binary = jaeger()
        directory.mkdir(parents=True, exist_ok=True)
        self.strategies = directory / "strategies.json"
        http, grpc, health = (ports.free() for _ in range(3))
        self.http_endpoint = f"http://127.0.0.1:{http}/sampling"
        self.grpc_endpoint = f"http://127.0.0.1:{grpc}"
        self._health = f"http://127.0.0.1:{health}/status"
        configuration = directory / "jaeger.json"
        configuration.write_text(
            json.dumps(
                {
                    "extensions": {
                        "healthcheckv2": {"use_v2": True, "http": {"endpoint": f"127.0.0.1:{health}"}},
                        # Sampling asks for a storage, also where it uses none.
                        "jaeger_storage": {"backends": {"none": {"memory": {"max_traces": 1}}}},
                        "remote_sampling": {
                            "file": {
                                "path": str(self.strategies),
                                "reload_interval": reload_interval,
                                "default_sampling_probability": 1.0,
                            },
                            "http": {"endpoint": f"127.0.0.1:{http}"},
                            "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                        },
                    },
                    "receivers": {"nop": None},
                    "exporters": {"nop": None},
                    "service": {
                        "extensions": ["healthcheckv2", "jaeger_storage", "remote_sampling"],
                        "pipelines": {"traces": {"receivers": ["nop"], "exporters": ["nop"]}},
                        "telemetry": {"metrics": {"level": "none"}},
                    },
                }
            )
        )
        self.spec = ProcessSpec(
            name=f"jaeger-{http}",
            command=(str(binary), "--config", str(configuration)),
            environment={"PATH": os.defpath, "HOME": str(directory)},
            log=directory / "jaeger.log",
            ready=self._ready,
        )

    def write(self, strategies: dict[str, Any]) -> None:
        """In one step: a collector never reads half of it."""
        unfinished = self.strategies.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(strategies))
        unfinished.rename(self.strategies)

    async def _ready(self) -> bool:
        return await serves_http(self._health)
