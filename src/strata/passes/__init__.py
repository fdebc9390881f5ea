"""Graph to graph: canonicalise, fold, fuse, clean up, plan memory."""
