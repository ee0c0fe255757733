"""What is told of runs to those who watch: logs, metrics, traces."""
