"""The embedded stack: every service of the suite, and what they stand on, as processes of one machine.

PostgreSQL, Redis, SoftHSM tokens, a development chain behind three named nodes, a development CA, and the services
themselves, on loopback. `python -m tools.stack up` for people; `Stack` for the demo, the bench and the tests. The
services are the same processes with the same settings as anywhere else: only addresses and files differ.
"""
