"""Data, pipeline and tensor parallelism: layouts of ranks, sharding of parameters, and collectives."""
