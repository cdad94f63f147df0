"""How arrays are laid over devices."""
