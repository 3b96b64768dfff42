"""New plugins: small packages that install, pass their own tests, and are there to be changed."""
