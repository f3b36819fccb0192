"""What a machine or a cluster has, what is missing and what to type: `statten doctor`."""
