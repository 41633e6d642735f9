"""Contract tests, a fake wire, fake clocks and the simulator, for authors of NovaCron plugins."""
