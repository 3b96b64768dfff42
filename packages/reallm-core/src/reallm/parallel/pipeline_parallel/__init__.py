"""Pipeline parallelism: a 1F1B schedule, and point-to-point messages whose sizes are known in advance."""
