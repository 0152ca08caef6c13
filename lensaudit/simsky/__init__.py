"""The simulated sky: the embedded default survey and the test bed of closure. It shares no physics with the engine."""
