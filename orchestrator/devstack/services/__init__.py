"""The sample HTTP services of the embedded stack, which behave towards a client as the real ones do."""
