"""The LoRA runtime: which adapters are in memory, and how mixed batches compute with them."""
