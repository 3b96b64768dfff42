"""The network: configuration, layers, attention, packed forward. Independent of parallelism and files."""
