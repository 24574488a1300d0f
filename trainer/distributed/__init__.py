"""Training in several processes: the process group, and weights sharded over it.

processes   the processes of a run, their devices and collectives (single process, or started by torchrun)
fsdp        a transformer's weights sharded with FSDP2, gathered and sharded again for files

Must not know: datasets, requests, or what is trained.
"""
