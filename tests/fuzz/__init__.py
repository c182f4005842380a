"""Coverage-guided fuzzing of decoding and adapting: `make fuzz`."""
