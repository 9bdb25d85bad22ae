"""The language and the engine: types, units, operator times, schedules, events. Knows no GPU and no model by name."""
