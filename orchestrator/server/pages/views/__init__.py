"""What there is to see: one module for each kind of page, which is given the stores and answers a template."""
