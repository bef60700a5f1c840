"""Managed tables: rows that are given to ids as they come and taken back from those least used."""
