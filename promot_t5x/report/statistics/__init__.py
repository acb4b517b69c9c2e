"""Intervals and tests of scores, computed from sums over examples.

Read in this order: `bootstrap` resamples the questions of a task, `estimates` makes a run's score
of each task from it, `variance` says how far a mean over several runs and many questions may be
off, `scores` has the means that tables show and the differences between them, `significance` the
tests for right and wrong answers and for many tests at once. `tools.simulate_intervals` measures
how often the intervals hold the truth. Everything is seeded: the same records give the same
numbers.
"""
