"""Launchers: start a run on Cloud TPU slices, GKE, Slurm, or in several processes of this machine.

`promot-t5x launch {tpu,gke,slurm,local} … -- COMMAND …`; `--print` shows every command and file,
and runs nothing. Read `tpu`, `gke`, `slurm` or `local` first. They share `commands` (programs of
others, with secrets out of sight), `cloud` (questions whose failures are no answers), `retries`
(what is repeated, and when), `payload` (the command, and the local files that it needs) and
`accelerators` (the table of TPU generations); `remote` and `package` are what a Cloud TPU VM gets.
"""
