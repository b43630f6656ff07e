"""What every training loop here shares: budgets, processes, precision, states that resume."""
