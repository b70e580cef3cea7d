"""Web page of `vqhps app`: photos in, bodies out, nothing kept."""
