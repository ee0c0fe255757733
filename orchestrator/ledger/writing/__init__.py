"""The one writer: jobs, group commit, transactions, projections."""
