"""The paper's Tables 1 and 2 with every row, its claims one by one, and its Figs. 2 and 3."""
