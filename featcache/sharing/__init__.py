"""sharing: pushes a run or a cache to a folder or the Hugging Face Hub, and pulls it with its digests checked."""
