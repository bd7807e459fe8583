"""The engine in this process: one model, continuous batching, any Hugging Face decoder with full attention."""
