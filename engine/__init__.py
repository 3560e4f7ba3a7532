"""Time: options, loop, checkpoints, metrics, pictures. The only room that knows both others."""
