"""Time: options, loop, checkpoints, metrics, prediction, pictures. The only room that knows both neighbours."""
