"""The conformance kit: checks of datasets, model families and loggers. Its public names are in `reallm_devkit`."""
