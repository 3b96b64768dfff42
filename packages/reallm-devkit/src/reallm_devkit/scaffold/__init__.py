"""Templates for new plugins: small packages that install, pass their own tests, and are meant to be changed."""
