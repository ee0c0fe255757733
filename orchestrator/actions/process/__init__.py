"""`exec` and `python`: programs of the author's own, supervised."""
