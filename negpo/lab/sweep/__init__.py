"""`negpo sweep`: methods x settings x seeds with equal budgets, judged at matched utility."""
