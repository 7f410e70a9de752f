"""What a training would be, without its weights, data or GPU: shapes, parameters, steps, sizes, memory."""
