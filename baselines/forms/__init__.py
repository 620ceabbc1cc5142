"""How it is written down: Pyomo variables and one function per numbered constraint."""
