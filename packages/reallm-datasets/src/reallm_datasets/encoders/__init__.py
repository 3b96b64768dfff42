"""Encoders: what each dataset makes of a row. They import no torch, so that worker processes start quickly."""
