"""From SeqIO tasks and mixtures to global batches, one noun a module.

`sources` finds the tasks behind a name, `store` holds their examples tokenized once, `order`
says which example stands at which place of the endless stream, `packing` puts examples into
rows, `assembly` writes rows as arrays and `batches` ties these together. Everything after
tokenization is numpy; TensorFlow and SeqIO are imported only when a task is looked up or read.
"""
