"""rows: which rows of a cache, as batches: cuts, folds, draws, caches side by side."""
