"""Training, from the loop to what a worker does when it is asked to go; nothing here knows Ray."""
