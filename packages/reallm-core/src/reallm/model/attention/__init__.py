"""Attention: the packed computation, grouped-query attention, and what is cached for decoding."""
