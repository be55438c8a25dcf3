"""`make bench`: how fast the suite is on this machine, and what its own parts would allow at best.

One run, so that ratios compare what was measured side by side: SoftHSM's bare rate beside signing, the disk's commits
beside a signature's latency, CPU with tracing beside CPU without. `python -m tools.bench [NAMES…] [--quick]`; NAMES are
those of `measures.MEASURES`. Figures go to a table and, with every sample behind them, to `build/bench.json`;
`python -m tools.bench.compare A.json B.json` puts two runs side by side.
"""
