"""What a training would be, and what stands in its way: the dry run and the doctor."""
