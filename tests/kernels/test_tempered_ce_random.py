"""The CPU's kernel against the float64 reference for thousands of random problems (tempered_ce_random.py)."""

import tempered_ce_random as random_problems
from hypothesis import HealthCheck, given, settings

# The same problems on every run: a failure is found again, and prints the problem that it was reduced to.
EVERY = settings(
    max_examples=2000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@EVERY
@given(random_problems.problems())
def test_native_keeps_its_bound_for_any_problem(problem):
    random_problems.check(problem, "native")
