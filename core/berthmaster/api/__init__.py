"""Typed views of every object that Berthmaster reads or writes, a module per API group."""
