"""Plug-in vehicles: the fleet, its sessions, and the world of normal charging."""
