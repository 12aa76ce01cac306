"""The runtime for published Qwen3Guard weights: checkpoints, the model, KV caches, the step loop. Needs torch."""
