"""Injections: named priors, hosts from the test split, and arcs put into real pixels."""
