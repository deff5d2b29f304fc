"""What a run measured: its fields, its files and its journal."""
