"""What models are trained and measured on: task definitions, templates and metrics.

`registry` holds the definitions by name, `targets` the tasks that are fine-tuned on real
data sets, `tiny` a small made-up world that needs no data at all. Importing this package,
or `registry`, imports no TensorFlow; building a task's data set does.
"""
