"""A daemon at work for a long time: whether its memory, files and logs stay as they are."""
