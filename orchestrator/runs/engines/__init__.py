"""How a run is driven from step to step: by this process alone, or inside DBOS Transact."""
