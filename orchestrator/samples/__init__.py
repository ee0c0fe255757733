"""What comes with the program to be looked at and run: workflows, policies, data, declarations."""
