"""rows: select rows of a cache (splits, folds, few-shot draws, several caches) and read them as arrays or batches."""
