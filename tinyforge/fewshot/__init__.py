"""Few-shot evaluation: benchmarks and their class splits, episodes, and the statistics over episodes."""
