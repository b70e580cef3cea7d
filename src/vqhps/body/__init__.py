"""What a body is: parametric models, named joints, mesh hierarchies, and motion from other skeletons."""
