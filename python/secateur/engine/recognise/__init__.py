"""From nodes of the traced graph to steps that the engine knows."""
