"""The other watermarks of the paper's Table 1, and what they are trained with."""
