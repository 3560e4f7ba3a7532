"""Set prediction, shared by every system: costs, matching, losses, criterion, post-processing."""
