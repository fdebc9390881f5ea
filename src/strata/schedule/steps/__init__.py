"""Schedule steps, one file per kind."""
