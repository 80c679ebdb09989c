"""Starting a command in several processes: on this machine, by SLURM, by Kubernetes."""
