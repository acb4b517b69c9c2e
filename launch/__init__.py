"""Starting a run where it shall run: Cloud TPU slices, GKE, Slurm, or several processes here.

`promot-t5x launch {tpu,gke,slurm,local} … -- VERB …`; `--print` shows every command and file, and
runs nothing.
"""
