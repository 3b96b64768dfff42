"""Previews of datasets: the samples that training gets from the first rows, token by token."""
