"""Models that are no composition of experts and gates: their heads are a design of their own."""
