"""The engine's mathematics. A reader who has an hour reads this folder and knows the engine."""
