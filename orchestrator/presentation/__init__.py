"""What is said of runs, leases, tasks and approvals: the same words on a terminal and on a page."""
