"""How hypothesis tries a model."""

from hypothesis import HealthCheck, Phase, settings


def chances(steps: int, examples: int, *, same: bool) -> settings:
    """``same``: the same examples each time, and none is made shorter, for that may take minutes: do it by hand."""
    checks = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=same,
        database=None,
        suppress_health_check=checks,
        phases=(Phase.generate,) if same else (Phase.generate, Phase.shrink),
    )
