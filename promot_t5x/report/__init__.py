"""Reports of what evaluations left: tables, figures, comparisons and a page, from records alone.

Read in this order: `runs` finds evaluations, and `answers` reads one of them with the metrics of
`own_metrics`; `seeds` decides which runs are seeds of one row, `selection` which scores chose their
own checkpoint. `comparison` computes every number of the table and `pairs` every difference, both
by `statistics`. `table`, `figures`, `curves`, `changed`, `side_by_side` and `page` show them, and
`output` writes them. `printed` has the paper's own numbers and which run makes each, and
`reproduction` sets them beside a run's. `sweep` has the runs of a sweep, `frontier_points` their
scores, `frontier` what each method trades. Public are `runs.read`, `comparison.compare`,
`pairs.pair`, the functions of `sections`, and `page`.
"""
