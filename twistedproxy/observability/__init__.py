"""What the data plane tells about itself: integers, log lines in batches. Nothing here formats anything on the hot path."""
