"""What a node of the traced graph computes, as a step that the engine knows."""
