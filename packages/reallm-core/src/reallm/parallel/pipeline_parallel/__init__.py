"""Pipeline parallelism: a 1F1B schedule over point-to-point messages of planned sizes."""
