"""Settings of a PlacementPolicy, a module for each concern; every field has a documented default."""
