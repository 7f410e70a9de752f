"""Results compared: tables, plots, and the paper's numbers beside them."""
