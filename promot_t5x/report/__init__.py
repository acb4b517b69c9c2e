"""What evaluations left, as tables, figures, comparisons and a page; from records alone.

`runs` finds and reads what evaluations left; `comparison` computes every number, `pairs` every
difference; `table`, `figures`, `changed` and `page` show them; `main` is `promot-t5x report`.
"""
