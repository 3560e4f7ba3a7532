"""Set prediction, shared by every system: costs, matching, losses, post-processing."""
