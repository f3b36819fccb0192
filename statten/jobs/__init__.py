"""Job files, and jobs on a cluster."""
