"""What `pcssl benchmark` times: one module an operator, with `TITLE` and `cases(sample, settings)`."""
