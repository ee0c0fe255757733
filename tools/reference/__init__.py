"""The reference pages, generated from the code: `python -m tools.reference` writes `docs/reference/`.

Nothing here says what the program does: models, docstrings and descriptions in the code do.
"""
