"""From files to rows: readers, images, clips, prompts, batches."""
