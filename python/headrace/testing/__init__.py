"""Exams that every entry of a registry must pass, shipped so that a new algorithm imports its own."""
