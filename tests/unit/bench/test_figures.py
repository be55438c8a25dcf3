"""A target that is missed must not look met."""

from tools.bench.figures import TARGETS, Target


def test_targets_have_a_direction() -> None:
    assert Target(at_least=0.8).is_met(0.8)
    assert not Target(at_least=0.8).is_met(0.79)
    assert Target(at_most=1.0).is_met(1.0)
    assert not Target(at_most=1.0).is_met(1.01)


def test_every_named_figure_has_a_target() -> None:
    assert {name: str(target) for name, target in TARGETS.items()} == {
        "sign_batch_vs_bare_token": "≥ 0.8",
        "sign_single_p50_vs_floor": "≤ 1",
        "transfers_per_s_batch_one_account": "≥ 300",
        "tracing_cpu_overhead_single": "≤ 0.1",
        "verifier_bundles_per_s": "≥ 400",
    }
