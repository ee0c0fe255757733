"""Going on from a run that failed: what of it counts, and the new run that carries out the rest."""
