"""Processes and devices of a run: start-up, common decisions, signals, hangs, and the mesh.

Read `startup` first (how processes find each other, and end together), then `devices` (the
accelerators found, compared with those asked for), `processes` (decisions that all processes take
together), `preemption` (SIGTERM and Ctrl-C), `watchdog` and `watchdog_process` (hangs and sudden
ends), and `partitioning` (the mesh, and the sharding of everything). `partitioning.Partitioner` and
`devices.Requirement` are public.
"""
