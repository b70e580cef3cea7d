"""Web page of `vqhps app`: photos and clips in, bodies out, nothing kept."""
