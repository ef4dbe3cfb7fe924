"""What things are: jobs, providers, runs, shards, status. Frozen data and no I/O."""
