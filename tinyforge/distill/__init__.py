"""A few-shot teacher (P>M>F) labels images; a tiny student learns from it."""
