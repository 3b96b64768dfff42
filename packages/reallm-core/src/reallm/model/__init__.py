"""The network: configuration, layers, attention, packed forward. It knows no parallelism and no file format."""
