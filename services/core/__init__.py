"""The wallet's vocabulary: pure functions and types, no I/O, no gRPC. Every service may import it; it imports none."""
