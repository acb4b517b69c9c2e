"""Measurements on the machine at hand, for `make bench` and `promot-t5x bench`.

`training`, `saves` and `decoding` each print throughput and the speed-up of a design choice, as
ratios within one run. Nothing else imports the package, and no test depends on its times.
"""
