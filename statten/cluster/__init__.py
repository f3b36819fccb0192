"""Ray: started or joined, its machines, and Ray Train around `fit`."""
