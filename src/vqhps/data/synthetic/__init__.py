"""Synthetic people: a ray-cast renderer on the CPU that writes training and test shards."""
