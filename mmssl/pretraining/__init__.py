"""From media, a method and settings to a run folder: what recipes and the demo share."""
