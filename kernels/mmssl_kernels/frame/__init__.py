"""What every kernel shares: dispatch, launch, argument checks, op registration, ahead-of-time compilation."""
