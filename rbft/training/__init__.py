"""Fine-tuning: order, loss, schedule, DeepSpeed engine, checkpoints, and the loop that joins them. Knows nothing of who runs it."""
