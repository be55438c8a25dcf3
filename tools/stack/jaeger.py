"""Stock Jaeger in front of tracestore: collectors that take spans, query instances that show them.

All speak Jaeger's remote storage API with tracestore, over mTLS. A collector keeps nothing: it has no queue and tries
nothing twice, so what it acknowledges tracestore has committed, and what tracestore answers the exporter hears.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.jaeger import JaegerMissing, jaeger
from tools.stack.files import write_json
from tools.stack.ports import Ports
from tools.stack.processes import ProcessSpec, StackError
from tools.stack.readiness import serves_http
from tools.stack.services import replica_name

# As their certificates and callers.yaml name them.
COLLECTOR, QUERY = "jaeger-collector", "jaeger-query"
COLLECTORS = tuple(replica_name(COLLECTOR, index) for index in range(3))
QUERIES = tuple(replica_name(QUERY, index) for index in range(2))

_STORE = "tracestore"
_MAX_REQUEST_MIB = 16
_EVERYTHING = {"default_strategy": {"type": "probabilistic", "param": 1.0}}


class EmbeddedJaeger:
    """`specs` are to be started once tracestore serves."""

    def __init__(
        self, directory: Path, log: Callable[[str], Path], tls: Path, ports: Ports, stores: Sequence[str]
    ) -> None:
        """`stores` are the addresses of tracestore, which the processes share out among them; `tls` holds a directory
        for each process.

        Raises:
            StackError: there is no Jaeger, and none can be built.
        """
        try:
            self._binary = jaeger()
        except JaegerMissing as missing:
            raise StackError(str(missing)) from None
        self._directory = directory
        self._log = log
        self._tls = tls
        self._stores = stores
        # A directory of its own, as where a ConfigMap is mounted.
        self.strategies_file = write_json(directory / "sampling" / "strategies.json", _EVERYTHING)
        self.collectors = {name: _address(ports) for name in COLLECTORS}
        self._sampling = {name: _address(ports) for name in COLLECTORS}
        self._sampling_http = {name: _address(ports) for name in COLLECTORS}
        self._queries = {name: _address(ports) for name in QUERIES}
        self._queries_grpc = {name: _address(ports) for name in QUERIES}
        self._health = {name: _address(ports) for name in (*COLLECTORS, *QUERIES)}
        self._metrics = {name: _address(ports) for name in (*COLLECTORS, *QUERIES)}
        self.specs = [
            *(self._collector(index, name) for index, name in enumerate(COLLECTORS)),
            *(self._query(index, name) for index, name in enumerate(QUERIES)),
        ]

    @property
    def query_urls(self) -> dict[str, str]:
        return {name: f"http://{address}" for name, address in self._queries.items()}

    @property
    def sampling_urls(self) -> dict[str, str]:
        return {name: f"http://{address}/sampling" for name, address in self._sampling_http.items()}

    @property
    def metrics_urls(self) -> dict[str, str]:
        return {name: f"http://{address}/metrics" for name, address in self._metrics.items()}

    def environment(self, process: int) -> dict[str, str]:
        """What a service is told: spans go to all collectors in turn, strategies come from one; `process` says which,
        so that each collector is asked by a third of the processes."""
        asked = self._sampling[COLLECTORS[process % len(COLLECTORS)]]
        return {
            "WALLET_COLLECTOR_NAME": COLLECTOR,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"ipv4:{','.join(self.collectors.values())}",
            "OTEL_TRACES_SAMPLER": "parentbased_jaeger_remote",
            "OTEL_TRACES_SAMPLER_ARG": f"endpoint=https://{asked},pollingIntervalMs=10000,initialSamplingRate=1.0",
        }

    def record(self) -> dict[str, Any]:
        """For `build/stack.json`."""
        return {
            "collectors": self.collectors,
            "query_urls": self.query_urls,
            "sampling_urls": self.sampling_urls,
            "metrics_urls": self.metrics_urls,
            "strategies_file": str(self.strategies_file),
        }

    def _collector(self, index: int, name: str) -> ProcessSpec:
        files = _tls_files(self._tls / name)
        server = {**files, "client_ca_file": files["ca_file"]}
        configuration = {
            "extensions": {
                **self._extensions(index, name),
                "remote_sampling": {
                    "file": {
                        "path": str(self.strategies_file),
                        # Jaeger's own defaults: never again, and one trace of a thousand.
                        "reload_interval": "10s",
                        "default_sampling_probability": 1.0,
                    },
                    "http": {"endpoint": self._sampling_http[name]},
                    "grpc": {"endpoint": self._sampling[name], "tls": server},
                },
            },
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {
                            "endpoint": self.collectors[name],
                            "tls": server,
                            "max_recv_msg_size_mib": _MAX_REQUEST_MIB,
                            # Services ping every 20 s; unless told, Jaeger takes more than one in 5 min for an attack.
                            "keepalive": {"enforcement_policy": {"min_time": "10s", "permit_without_stream": True}},
                        }
                    }
                }
            },
            "processors": {"memory_limiter": {"check_interval": "1s", "limit_mib": 400, "spike_limit_mib": 100}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": _STORE}},
            "service": {
                "extensions": ["healthcheckv2", "jaeger_storage", "remote_sampling"],
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        "processors": ["memory_limiter"],
                        "exporters": ["jaeger_storage_exporter"],
                    }
                },
                "telemetry": self._telemetry(name),
            },
        }
        ports = {
            "otlp": self.collectors[name],
            "sampling": self._sampling_http[name],
            "sampling grpc": self._sampling[name],
        }
        return self._spec(name, configuration, f"http://{self._health[name]}/status", ports)

    def _query(self, index: int, name: str) -> ProcessSpec:
        configuration = {
            "extensions": {
                **self._extensions(index, name),
                "jaeger_query": {
                    "storage": {"traces": _STORE},
                    "enable_tracing": False,
                    "http": {"endpoint": self._queries[name]},
                    "grpc": {"endpoint": self._queries_grpc[name]},
                },
            },
            # Jaeger wants a pipeline.
            "receivers": {"nop": None},
            "exporters": {"nop": None},
            "service": {
                "extensions": ["healthcheckv2", "jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["nop"], "exporters": ["nop"]}},
                "telemetry": self._telemetry(name),
            },
        }
        ports = {"http": self._queries[name], "grpc": self._queries_grpc[name]}
        # Answers only when tracestore does.
        return self._spec(name, configuration, f"http://{self._queries[name]}/api/services", ports)

    def _extensions(self, index: int, name: str) -> dict[str, Any]:
        client = {**_tls_files(self._tls / name), "server_name_override": _STORE}
        store = {"endpoint": self._stores[index % len(self._stores)], "tls": client}
        return {
            "healthcheckv2": {"use_v2": True, "http": {"endpoint": self._health[name]}},
            "jaeger_storage": {"backends": {_STORE: {"grpc": store}}},
        }

    def _telemetry(self, name: str) -> dict[str, Any]:
        host, _, port = self._metrics[name].rpartition(":")
        reader = {"pull": {"exporter": {"prometheus": {"host": host, "port": int(port)}}}}
        return {"metrics": {"level": "normal", "readers": [reader]}, "logs": {"encoding": "json"}}

    def _spec(self, name: str, configuration: dict[str, Any], url: str, addresses: dict[str, str]) -> ProcessSpec:
        # What YAML is, JSON is too.
        file = write_json(self._directory / f"{name}.json", configuration)

        async def ready() -> bool:
            return await serves_http(url)

        addresses = {**addresses, "metrics": self._metrics[name]}
        return ProcessSpec(
            name=name,
            command=(str(self._binary), "--config", str(file)),
            environment={"PATH": os.defpath, "HOME": str(self._directory)},
            log=self._log(name),
            ready=ready,
            ports={kind: int(address.rpartition(":")[2]) for kind, address in addresses.items()},
        )


def _address(ports: Ports) -> str:
    return f"127.0.0.1:{ports.free()}"


def _tls_files(directory: Path) -> dict[str, str]:
    return {
        "ca_file": str(directory / "ca.pem"),
        "cert_file": str(directory / "cert.pem"),
        "key_file": str(directory / "key.pem"),
    }
