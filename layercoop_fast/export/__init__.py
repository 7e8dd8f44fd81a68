"""What comes out: the pruned model as a plain Hugging Face checkpoint, and which masks have one."""
