"""Intervals and comparisons of scores, from sums over examples.

`bootstrap` resamples the examples of a task, `estimates` carries what the resamples say through
differences and means, `significance` has the tests of a difference, `seeds` what several runs of
one method say. All of it is seeded: the same records give the same numbers.
"""
