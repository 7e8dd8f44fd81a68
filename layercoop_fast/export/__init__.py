"""What comes out: the pruned model as a plain Hugging Face checkpoint or GGUF file, and which masks have one."""
