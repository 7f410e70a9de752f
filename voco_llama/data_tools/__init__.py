"""Tools over data sets: preparing, checking, counting, and showing them."""
