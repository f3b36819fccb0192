"""Files of ours that are read back: what each may hold, and one reader for all of them."""
